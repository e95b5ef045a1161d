"""The first section of `qdq sensitivity`: the ratio, and what makes the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from qdq.graph.float_types import FLOAT_TYPES
from qdq.pipeline.float_sensitivity import FloatSensitivity
from qdq.pipeline.sensitivity_analysis import Sensitivity
from qdq.reports.partial_sections import format_decibels
from qdq.reports.sections import Section
from qdq.sensitivity.group_ranking import GroupSensitivity, MetricLoss
from qdq.sensitivity.layer_errors import LayerError
from qdq.sensitivity.partial_result import WARN_BELOW_DB

_LOW = f"below {WARN_BELOW_DB:g} dB most tasks lose accuracy"


def sensitivity_result_section(sensitivity: Sensitivity) -> Section:
    """Return the result for the pairs of a plan or of a quantized model."""
    ratio = sensitivity.int8_snr_db
    parts = [format_decibels(ratio)]
    if math.isfinite(ratio):
        parts = [f"{parts[0]} signal-to-noise with all pairs"]
    if not isinstance(sensitivity.metric, msgspec.UnsetType):
        metric = sensitivity.metric
        parts.append(f"{metric.name} {metric.int8:.5g} (float {metric.float_model:.5g})")
    lines = [f"{sensitivity.quantized or sensitivity.model}: {'; '.join(parts)}"]
    if sensitivity.groups:
        lines.append(_describe_worst(sensitivity.groups[0], sensitivity.by))
    fall = find_largest_fall(sensitivity)
    if fall is not None and fall.fall_db is not None:
        lines.append(f"the ratio falls most at {fall.node}, by {fall.fall_db:.2f} dB")
    if ratio < WARN_BELOW_DB:
        lines.append(f"warning: {_LOW}")
    return Section("Result", tuple(lines))


def float_result_section(sensitivity: FloatSensitivity) -> Section:
    """Return the result for a 16-bit type."""
    label = FLOAT_TYPES[sensitivity.to].label
    ratio, kept = sensitivity.all_snr_db, sensitivity.cast_snr_db
    lines = [
        f"{sensitivity.model}: {format_decibels(ratio)} with all nodes in {label}, "
        f"{format_decibels(kept)} with those in FP32 that the rules keep"
    ]
    if sensitivity.nodes:
        worst = sensitivity.nodes[0]
        lines.append(
            f"worst of those measured: {worst.node}, {format_decibels(worst.snr_db)} alone"
        )
    if kept < WARN_BELOW_DB:
        lines.append(f"warning: {_LOW}")
    return Section("Result", tuple(lines))


def find_largest_fall(sensitivity: Sensitivity) -> LayerError | None:
    """Return the layer at whose result the ratio falls most; None where it falls at none."""
    falls: list[tuple[float, LayerError]] = []
    for layer in sensitivity.layers or ():
        if layer.fall_db is not None and layer.fall_db > 0.0:
            falls.append((layer.fall_db, layer))
    return max(falls, key=_first)[1] if falls else None


def _first(item: tuple[float, LayerError]) -> float:
    return item[0]


def _describe_worst(group: GroupSensitivity, by: str) -> str:
    """Return the costs of the first group in a line."""
    facts = "; ".join(_list_costs(group))
    return f"the worst {by} is {group.name}: {facts}"


def _list_costs(group: GroupSensitivity) -> Iterator[str]:
    if isinstance(group.metric, MetricLoss):
        yield f"the score drops by {group.metric.drop:.4g} with it alone"
    yield f"{format_decibels(group.snr_db)} alone"
    if group.gain_db is not None and math.isfinite(group.gain_db):
        yield f"in float it gains {group.gain_db:+.2f} dB for {group.work:.2%} of the work"
