"""Sections about partial quantization: what was measured, and what stays in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import msgspec

from qdq.pipeline.recovery_job import RecoveryStep
from qdq.reports.sections import Section, count_noun, join_names
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.partial_result import WARN_BELOW_DB, PartialResult

#: The most points of a trade-off that are shown.
_MOST_STEPS = 20


def partial_sections(result: PartialResult | str | msgspec.UnsetType) -> Iterator[Section]:
    """Yield the sections about a guard or a budget, if there was one."""
    if isinstance(result, str):
        yield Section("Sensitivity", (result,))
    elif isinstance(result, PartialResult):
        yield _result_section(result)
        if result.steps:
            yield _trade_off_section(result)


def recovery_sections(steps: Iterable[RecoveryStep]) -> Iterator[Section]:
    """Yield the section about the methods that were tried to recover accuracy in INT8."""
    lines: list[str] = []
    for step in steps:
        places = count_noun(step.places, "place")
        outcome = "kept" if step.is_kept else "not kept"
        before, after = format_decibels(step.before_db), format_decibels(step.after_db)
        lines.append(f"{step.method}: {places}, {before} without, {after} with it: {outcome}")
    if lines:
        yield Section("Recovery", tuple(lines))


def _result_section(result: PartialResult) -> Section:
    rows: list[tuple[str, str]] = []
    for layer in result.sensitive:
        rows.append((layer.node, f"{layer.gain_db:.2f} dB"))
    headers = ("left in float", "gain") if rows else ()
    return Section("Sensitivity", tuple(_describe(result)), headers, tuple(rows))


def _trade_off_section(result: PartialResult) -> Section:
    """Return the measured points of a trade-off: work in float against loss."""
    rows: list[tuple[str, str, str]] = []
    for step in result.steps[:_MOST_STEPS]:
        names = join_names(step.released) if step.released else "-"
        rows.append((f"{step.work:.2%}", _format_loss(result, step.loss), names))
    loss = "signal-to-noise" if isinstance(result.scores, msgspec.UnsetType) else "drop"
    return Section("Trade-off", (), ("work in float", loss, "left in float"), tuple(rows))


def _format_loss(result: PartialResult, loss: float) -> str:
    """Return the loss of a point: noise in dB, or the drop of the metric."""
    if isinstance(result.scores, msgspec.UnsetType):
        return format_decibels(to_decibels(loss))
    return f"{loss:.4g}"


def format_decibels(value: float) -> str:
    """Return a ratio in dB for people."""
    return f"{value:.1f} dB" if math.isfinite(value) else "no error"


def _describe(result: PartialResult) -> Iterator[str]:
    samples = count_noun(result.samples, "calibration sample")
    line = (
        f"signal-to-noise ratio at the outputs over {samples}: "
        f"{format_decibels(result.int8_snr_db)} with the whole plan quantized"
    )
    if result.sensitive:
        layers = count_noun(len(result.sensitive), "layer")
        line += (
            f", {format_decibels(result.snr_db)} with {layers} in float "
            f"({result.work:.1%} of the multiply-accumulates; {result.int8_work:.1%} quantized)"
        )
    yield line
    if not isinstance(result.scores, msgspec.UnsetType):
        float_score, int8_score, score = result.scores
        yield f"metric: float {float_score:.4g}, all INT8 {int8_score:.4g}, result {score:.4g}"
    if result.snr_db < WARN_BELOW_DB:
        yield from _warn(result)


def _warn(result: PartialResult) -> Iterator[str]:
    worst = [f"{layer.node} ({layer.snr_db:.1f} dB alone)" for layer in result.worst]
    layers = f": the worst layers in INT8 are {', '.join(worst)}" if worst else ""
    yield (
        f"warning: below {WARN_BELOW_DB:.0f} dB the outputs differ much from those of the float "
        f"model{layers}. Run 'qdq sensitivity MODEL --data DATA' for all layers, "
        "or pass --min-snr 20dB."
    )
