"""The weighted layers of an engine by the type that each multiplies."""

from __future__ import annotations

from collections import Counter

from qdq.reports.sections import count_noun
from qdq.validation.engine_report import EngineReport


def count_layers(engine: EngineReport) -> str:
    """Return how many weighted layers run in each type, the quantized ones first."""
    if not engine.layers:
        return "no weighted layer"
    counts = Counter(layer.precision for layer in engine.layers)
    unnamed = counts.pop("", 0)
    quantized = sum(layer.int8 or layer.fp8 or layer.int4 for layer in engine.layers)
    parts: list[str] = []
    if not quantized:
        parts.append(f"no weighted layer of {len(engine.layers)} in {engine.types}")
    total = f" of {count_noun(len(engine.layers), 'weighted layer')}"
    for precision in sorted(counts, key=_order_precision):
        parts.append(f"{counts[precision]}{'' if parts else total} in {precision}")
    if unnamed:
        parts.append(f"{unnamed} that no layer of the engine names")
    return ", ".join(parts)


def _order_precision(precision: str) -> tuple[bool, str]:
    return precision not in ("INT8", "FP8", "INT4"), precision
