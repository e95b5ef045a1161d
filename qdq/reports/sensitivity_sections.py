"""Sections and the chart about the sensitivity of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from qdq.errors import UsageError
from qdq.graph.float_types import FLOAT_TYPES
from qdq.pipeline.float_sensitivity import FloatSensitivity
from qdq.pipeline.sensitivity_analysis import Sensitivity
from qdq.reports.bar_chart import Bar, BarChart, bar_chart_svg
from qdq.reports.partial_sections import format_decibels
from qdq.reports.sections import Section, count_noun
from qdq.sensitivity.group_ranking import GroupSensitivity, MetricLoss
from qdq.sensitivity.layer_errors import LayerError

#: The suffix of charts.
CHART_SUFFIX = ".svg"

_LEGEND = ("activations", "weights", "not split")


def check_chart_path(path: Path) -> None:
    """Raise UsageError unless a path's suffix is that of a chart."""
    if path.suffix != CHART_SUFFIX:
        raise UsageError(f"{path}: a chart is SVG. Pass a file that ends in {CHART_SUFFIX}.")


def sensitivity_sections(sensitivity: Sensitivity, top: int) -> list[Section]:
    """Return the sections about a sensitivity, with the `top` groups and layers."""
    sections = [_summary(sensitivity)]
    if not isinstance(sensitivity.layers, msgspec.UnsetType):
        sections.append(_layers_section(sensitivity.layers, top))
    sections.append(_groups_section(sensitivity, top))
    return sections


def _summary(sensitivity: Sensitivity) -> Section:
    samples = count_noun(sensitivity.samples, "sample")
    pairs = f"the pairs of {sensitivity.quantized}" if sensitivity.quantized else "the whole plan"
    lines = [
        f"model {sensitivity.model}, {samples} measured at {', '.join(sensitivity.measured_at)}",
        f"signal-to-noise ratio with {pairs} in INT8: {format_decibels(sensitivity.int8_snr_db)} "
        f"there, {format_decibels(sensitivity.output_snr_db)} at the outputs",
        f"in INT8: {sensitivity.int8_work:.1%} of the multiply-accumulates",
    ]
    if not isinstance(sensitivity.metric, msgspec.UnsetType):
        metric = sensitivity.metric
        lines.append(
            f"metric {metric.name}: float {metric.float_model:.4g}, INT8 {metric.int8:.4g}"
        )
    return Section("Sensitivity", (*lines, *sensitivity.notes))


def _groups_section(sensitivity: Sensitivity, top: int) -> Section:
    groups = sensitivity.groups
    has_metric = not isinstance(sensitivity.metric, msgspec.UnsetType)
    headers = [sensitivity.by, "alone", "gain", "work", "activations", "clipping", "weights"]
    if has_metric:
        headers[1:1] = ["drop alone", "gain of score"]
    rows: list[tuple[str, ...]] = []
    for group in groups[:top]:
        row = [
            group.name,
            format_decibels(group.snr_db),
            "-" if group.gain_db is None else f"{group.gain_db:+.2f} dB",
            f"{group.work:.2%}",
            _format_share(group.activation_share),
            _format_share(group.clipping_share),
            _format_share(group.weight_share),
        ]
        if has_metric:
            row[1:1] = _format_metric(group)
        rows.append(tuple(row))
    shown = f"{len(rows)} of {count_noun(len(groups), 'group')}" + (
        " (--top shows more, JSON all)" if len(rows) < len(groups) else ""
    )
    lines = (
        shown,
        "alone: the signal-to-noise ratio with only this group in INT8; gain: what the whole plan "
        "gains with it in float",
        "activations and weights: their shares of the noise alone; clipping: its share of the "
        "activations' error, the rest is rounding",
    )
    return Section("Groups", lines, tuple(headers), tuple(rows))


def _format_share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _format_metric(group: GroupSensitivity) -> list[str]:
    if isinstance(group.metric, MetricLoss):
        return [f"{group.metric.drop:.4g}", f"{group.metric.gain:+.4g}"]
    return ["-", "-"]


def _layers_section(layers: Sequence[LayerError], top: int) -> Section:
    """Return the layers of the largest falls, in the order of the graph."""
    by_fall = sorted(layers, key=_fall, reverse=True)[:top]
    rows: list[tuple[str, str, str, str]] = []
    for layer in layers:
        if layer in by_fall:
            fall = "-" if layer.fall_db is None else f"{layer.fall_db:+.2f} dB"
            rows.append((layer.node, layer.op, format_decibels(layer.snr_db), fall))
    shown = f"{len(rows)} of {count_noun(len(layers), 'layer')} in the order of the graph, those "
    lines = (
        f"{shown}where the ratio falls most",
        "SNR: the signal-to-noise ratio at the layer's result in the quantized model; fall: by how "
        "much it is below that of the layers right before",
    )
    return Section("Layers", lines, ("layer", "operator", "SNR", "fall"), tuple(rows))


def _fall(layer: LayerError) -> float:
    """Return a key for the fall at a layer; a first layer falls from no noise at all."""
    if layer.fall_db is None:
        return -layer.snr_db
    return layer.fall_db


def sensitivity_chart(sensitivity: Sensitivity, top: int) -> str:
    """Return the chart of the `top` groups as SVG: by the metric's drop, else by noise alone."""
    subtitle = f"noise with one {sensitivity.by} alone in INT8"
    legend: tuple[str, ...] = _LEGEND
    if isinstance(sensitivity.metric, msgspec.UnsetType):
        bars = tuple(_noise_bars(sensitivity.groups[:top]))
    else:
        subtitle = f"drop of {sensitivity.metric.name} with one {sensitivity.by} alone in INT8"
        bars = tuple(_metric_bars(sensitivity.groups[:top]))
        legend = ()
    title = f"Sensitivity of {sensitivity.quantized or sensitivity.model}"
    whole = f"{format_decibels(sensitivity.int8_snr_db)} with all groups in INT8"
    return bar_chart_svg(BarChart(title, f"{subtitle}; {whole}", legend, bars))


def _noise_bars(groups: Sequence[GroupSensitivity]) -> Iterator[Bar]:
    for group in groups:
        noise = 10 ** (-group.snr_db / 10) if math.isfinite(group.snr_db) else 0.0
        parts = (0.0, 0.0, noise)
        if group.activation_share is not None and group.weight_share is not None:
            parts = (noise * group.activation_share, noise * group.weight_share, 0.0)
        yield Bar(group.name, parts, _format_bar(group))


def _format_bar(group: GroupSensitivity) -> str:
    text = format_decibels(group.snr_db)
    return text if group.gain_db is None else f"{text}, gain {group.gain_db:+.2f} dB"


def _metric_bars(groups: Sequence[GroupSensitivity]) -> Iterator[Bar]:
    for group in groups:
        if isinstance(group.metric, MetricLoss):
            drop = group.metric.drop
            length = max(drop, 0.0) if math.isfinite(drop) else 0.0
            yield Bar(group.name, (length,), f"{drop:.4g}")


def float_sensitivity_sections(sensitivity: FloatSensitivity) -> Iterator[Section]:
    """Yield the section about the noise of a 16-bit type."""
    label = FLOAT_TYPES[sensitivity.to].label
    lines = (
        f"signal-to-noise with all nodes in {label}: {sensitivity.all_snr_db:.1f} dB",
        f"with those in FP32 that the rules keep: {sensitivity.cast_snr_db:.1f} dB",
        f"measured on {count_noun(sensitivity.samples, 'sample')}, each node alone",
    )
    rows: list[tuple[str, str, str, str, str]] = []
    for node in sensitivity.nodes:
        row = (node.node, node.operator, f"{node.amax:.4g}", f"{node.snr_db:.1f}", node.kept)
        rows.append(row)
    headers = ("node", "operator", "largest value", "dB", "in FP32 by") if rows else ()
    yield Section(f"{label} of {sensitivity.model}", lines, headers, tuple(rows))
