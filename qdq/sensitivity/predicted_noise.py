"""The noise that rounding a layer's operands makes at its result, predicted without a run.

It follows from what calibration knows: the histograms and channel moments of activations, and the
weights. Rounding is uniform noise that has nothing to do with the values (Widrow and Kollar,
Quantization Noise, 2008, chapter 5). The noise of each output channel is compared with the
channel's own variance: a channel that varies little among others that vary much is lost first.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qdq.arrays import Floats
from qdq.calibration.scales import PairScale, Scales
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.operands import reshape_by_channels
from qdq.planning.decisions import Placement
from qdq.quantizer import ElementType
from qdq.ranges.histogram import BINS, Histogram
from qdq.ranges.tensor_ranges import Moments, Ranges, TensorRange
from qdq.sensitivity.layer_groups import LayerGroup

_WEIGHT_SLOT = 1

#: A result that is all noise.
_ALL_NOISE = 1.0


class NoisePredictor:
    """Predictions for the groups of one plan."""

    def __init__(self, index: GraphIndex, ranges: Ranges, scales: Scales) -> None:
        self._index = index
        self._ranges = {item.tensor: item for item in ranges.by_tensor}
        self._scales = {(item.tensor, item.quantizer): item for item in scales.by_pair}
        self._errors: dict[str, tuple[float, float]] = {}

    def predict(self, group: LayerGroup) -> float:
        """Return the noise of a group's results relative to them: 0 for none, 1 for nothing else.

        It is the sum over the nodes of the group.
        """
        by_node: dict[tuple[str, str], list[Placement]] = {}
        for placement in group.placements:
            key = (placement.edge.graph, placement.edge.node)
            by_node.setdefault(key, []).append(placement)
        return sum(self._predict_node(placements) for placements in by_node.values())

    def _predict_node(self, placements: Iterable[Placement]) -> float:
        by_slot = {placement.edge.slot: placement for placement in placements}
        weight = by_slot.get(_WEIGHT_SLOT)
        data = by_slot.get(0)
        if weight is not None and data is not None and not weight.quantizer.calibrated:
            noise = self._predict_layer(data, weight)
            if noise is not None:
                return noise
        calibrated = [item for item in by_slot.values() if item.quantizer.calibrated]
        return sum(self._relative_error(item) for item in calibrated)

    def _predict_layer(self, data: Placement, weight: Placement) -> float | None:
        """Return the noise of a layer with a constant weight; None where moments are missing."""
        node = self._index.node(weight.edge)
        scope = self._index.scope(weight.edge)
        channels = reshape_by_channels(node, np.asarray(scope.constant(weight.edge.tensor)))
        item = self._ranges.get(qualified_name(data.edge.graph, node.inputs[0]))
        if channels is None or item is None or item.moments is None:
            return None
        groups = int(node.attribute("group", 1))
        if channels.shape[1] * groups != item.moments.sums.size:
            return None
        error, _ = self._square_error(data, item)
        steps = np.asarray(self._find_scale(weight).scales)
        return _predict_channels(channels.astype(np.float64), item.moments, groups, error, steps)

    def _relative_error(self, placement: Placement) -> float:
        item = self._ranges.get(placement.edge.qualified_tensor)
        if item is None:
            return 0.0
        error, energy = self._square_error(placement, item)
        return min(error / energy, _ALL_NOISE) if energy > 0.0 else 0.0

    def _square_error(self, placement: Placement, item: TensorRange) -> tuple[float, float]:
        """Return the mean square of an activation's rounding error, and of its values."""
        if item.tensor not in self._errors:
            scale = self._find_scale(placement).scales[0]
            element = placement.quantizer.element
            self._errors[item.tensor] = _measure_error(item.histogram, scale, element)
        return self._errors[item.tensor]

    def _find_scale(self, placement: Placement) -> PairScale:
        return self._scales[placement.edge.qualified_tensor, placement.quantizer]


def _measure_error(
    histogram: Histogram | None, scale: float, element: ElementType
) -> tuple[float, float]:
    """Return the mean square error of rounding counted values, and the mean square of these."""
    if histogram is None or histogram.amax == 0.0:
        return 0.0, 0.0
    counts = histogram.counts
    values = (np.arange(BINS) + 0.5) * 2.0**histogram.exponent
    rounded = element.round(values / scale) * scale
    total = int(counts.sum())
    error = float(counts @ (values - rounded) ** 2) / total
    energy = float(counts @ values**2) / total
    return error, energy


def _predict_channels(
    weight: Floats, moments: Moments, groups: int, error: float, steps: Floats
) -> float:
    """Return the mean over output channels of noise over variance.

    `weight` is [outputs, inputs of a group, taps]; `steps` are its scales, one per output channel
    or one for all.
    """
    outputs = len(weight)
    per_group = np.arange(outputs) // max(1, outputs // groups)
    squares = (weight**2).sum(axis=2)
    mean, variance = (_spread(values, groups)[per_group] for values in moments.mean_and_variance())
    energy = variance + mean**2
    signal = (squares * variance).sum(axis=1)
    from_data = squares.sum(axis=1) * error
    from_weight = steps**2 / 12 * energy.sum(axis=1) * weight.shape[2]
    noise = from_data + from_weight
    ratios = np.divide(noise, signal, out=np.zeros(outputs), where=signal > 0.0)
    return float(np.minimum(ratios, _ALL_NOISE).mean())


def _spread(values: Floats, groups: int) -> Floats:
    """Return a vector over input channels as one row per group."""
    return values.reshape(groups, -1)
