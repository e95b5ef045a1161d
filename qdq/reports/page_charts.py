"""What a page draws of measurements: histograms with their amax, curves and ranked bars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from qdq.calibration.scales import Scales
from qdq.graph.float_types import FLOAT_TYPES
from qdq.pipeline.float_sensitivity import FloatSensitivity
from qdq.pipeline.sensitivity_analysis import Sensitivity
from qdq.ranges.histogram import Histogram
from qdq.ranges.tensor_ranges import Ranges
from qdq.reports.page import Bars, Curve, CurvePoint, RangeHistogram
from qdq.reports.partial_sections import format_decibels
from qdq.sensitivity.group_ranking import GroupSensitivity, MetricLoss
from qdq.sensitivity.layer_errors import LayerError
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.partial_result import PartialResult

#: The bins of a histogram on a page.
_BINS = 48

#: The groups that bars are drawn for.
_MOST_BARS = 20

#: The names of a label.
_MOST_NAMES = 3


def list_histograms(ranges: Ranges | None, scales: Scales | None) -> tuple[RangeHistogram, ...]:
    """Return the histograms of the calibrated tensors, those that are clipped most first."""
    if ranges is None or scales is None:
        return ()
    histograms = {item.tensor: item.histogram for item in ranges.by_tensor}
    drawn: dict[str, RangeHistogram] = {}
    for pair_scale in scales.by_pair:
        histogram = histograms.get(pair_scale.tensor)
        if histogram is None or histogram.amax <= 0.0 or len(pair_scale.scales) != 1:
            continue
        amax = pair_scale.scales[0] * pair_scale.quantizer.element.largest
        counts = _join_bins(histogram)
        drawn[pair_scale.tensor] = RangeHistogram(pair_scale.tensor, histogram.amax, amax, counts)
    return tuple(sorted(drawn.values(), key=_clipping, reverse=True))


def _clipping(histogram: RangeHistogram) -> float:
    """Return the largest value over the one at which it is clipped."""
    return histogram.largest / histogram.amax if histogram.amax > 0.0 else math.inf


def _join_bins(histogram: Histogram) -> tuple[int, ...]:
    """Return the counts in bins from 0 to the largest value; the last one may be narrower."""
    counts = histogram.counts
    used = int(np.flatnonzero(counts)[-1]) + 1
    joined = math.ceil(used / _BINS)
    padded = np.zeros(joined * _BINS, np.int64)
    padded[:used] = counts[:used]
    sums = padded.reshape(_BINS, joined).sum(axis=1)
    return tuple(int(count) for count in sums)


def list_trade_offs(result: PartialResult | str | msgspec.UnsetType | None) -> Iterator[Curve]:
    """Yield the measured trade-off between work in float and the loss."""
    if not isinstance(result, PartialResult) or len(result.steps) < 2:  # noqa: PLR2004 a line
        return
    is_noise = isinstance(result.scores, msgspec.UnsetType)
    points: list[CurvePoint] = []
    for step in result.steps:
        loss = to_decibels(step.loss) if is_noise else step.loss
        names = ", ".join(step.released[:_MOST_NAMES])
        if len(step.released) > _MOST_NAMES:
            names += f" and {len(step.released) - _MOST_NAMES} more"
        if math.isfinite(loss):
            points.append(CurvePoint(100 * step.work, loss, names or "everything in INT8"))
    loss_label = "signal-to-noise, dB" if is_noise else "drop of the score"
    yield Curve(
        "What accuracy costs", "work in float, % of the multiplications", loss_label, tuple(points)
    )


def list_layer_curves(layers: Sequence[LayerError] | msgspec.UnsetType) -> Iterator[Curve]:
    """Yield the curve of the signal-to-noise ratio from layer to layer."""
    points: list[CurvePoint] = []
    for number, layer in enumerate(layers or ()):
        if math.isfinite(layer.snr_db):
            points.append(CurvePoint(float(number), layer.snr_db, layer.node))
    if len(points) > 1:
        yield Curve(
            "Error from layer to layer",
            "layers in the order of the graph",
            "signal-to-noise, dB",
            tuple(points),
        )


def list_bars(sensitivity: Sensitivity) -> Iterator[Bars]:
    """Yield the noise of the worst groups alone, and their drop of the score."""
    groups = sensitivity.groups[:_MOST_BARS]
    title = f"Noise with one {sensitivity.by} alone in INT8"
    note = f"the {len(groups)} largest of {len(sensitivity.groups)}; the bar is noise, not dB"
    rows = _scale_rows(list(_noise_rows(groups)))
    if rows:
        yield Bars(title, ("activations", "weights", "not split"), rows, note)
    if isinstance(sensitivity.metric, msgspec.UnsetType):
        return
    metric_rows = _scale_rows(list(_metric_rows(groups)))
    if metric_rows:
        name = sensitivity.metric.name
        yield Bars(f"Drop of {name} with one {sensitivity.by} alone in INT8", (), metric_rows)


def list_float_bars(sensitivity: FloatSensitivity) -> Iterator[Bars]:
    """Yield the noise of the measured nodes, each alone in a 16-bit type."""
    rows: list[tuple[str, tuple[float, ...], str]] = []
    for node in sensitivity.nodes[:_MOST_BARS]:
        noise = 10 ** (-node.snr_db / 10) if math.isfinite(node.snr_db) else 0.0
        rows.append((node.node, (noise,), format_decibels(node.snr_db)))
    if rows:
        label = FLOAT_TYPES[sensitivity.to].label
        note = "nodes with the most extreme values; the bar is noise, not dB"
        yield Bars(f"Noise with one node alone in {label}", (), _scale_rows(rows), note)


def list_worst_bars(result: PartialResult | str | msgspec.UnsetType | None) -> Iterator[Bars]:
    """Yield the gain of each layer that a search left in float."""
    if not isinstance(result, PartialResult) or not result.sensitive:
        return
    rows: list[tuple[str, tuple[float, ...], str]] = []
    for layer in result.sensitive[:_MOST_BARS]:
        rows.append((layer.node, (max(layer.gain_db, 0.0),), f"{layer.gain_db:+.2f} dB"))
    yield Bars("Layers left in float, and what each gains", (), _scale_rows(rows))


def _noise_rows(
    groups: Sequence[GroupSensitivity],
) -> Iterator[tuple[str, tuple[float, ...], str]]:
    for group in groups:
        noise = 10 ** (-group.snr_db / 10) if math.isfinite(group.snr_db) else 0.0
        parts = (0.0, 0.0, noise)
        if group.activation_share is not None and group.weight_share is not None:
            parts = (noise * group.activation_share, noise * group.weight_share, 0.0)
        text = format_decibels(group.snr_db)
        if group.gain_db is not None:
            text += f", gain {group.gain_db:+.2f} dB"
        yield group.name, parts, text


def _metric_rows(
    groups: Sequence[GroupSensitivity],
) -> Iterator[tuple[str, tuple[float, ...], str]]:
    for group in groups:
        if isinstance(group.metric, MetricLoss) and math.isfinite(group.metric.drop):
            drop = group.metric.drop
            yield group.name, (max(drop, 0.0),), f"{drop:.4g}"


def _scale_rows(
    rows: Sequence[tuple[str, tuple[float, ...], str]],
) -> tuple[tuple[str, tuple[float, ...], str], ...]:
    """Return rows whose longest bar has the length 1."""
    longest = max((sum(parts) for _, parts, _ in rows), default=0.0)
    if longest <= 0.0:
        return tuple(rows)
    scaled: list[tuple[str, tuple[float, ...], str]] = []
    for name, parts, text in rows:
        scaled.append((name, tuple(part / longest for part in parts), text))
    return tuple(scaled)
