"""Findings about weights that their scale clips, or that are far from filling their range.

No other check reads the values of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array, Floats
from qdq.checking.finding import Finding, make_finding
from qdq.checking.scale_comparison import are_positive
from qdq.graph.constant_chains import explain_unknown_value
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantizer import INT8, INT8_LEVELS

#: The largest ratio between a channel's range and its largest weight that is not reported. Pairs
#: that qdq, ONNX Runtime and Model Optimizer choose stay within 2.
_MOST_RATIO = 4.0

#: The largest share of a weight at the ends of its range that is not reported: values that are
#: clipped, or stored as 127 or -127, not counting the largest of each channel.
_MOST_SATURATED = 0.05

#: The fewest weights for which a share is meaningful: the scale that changes the layer's output
#: least may clip one of two.
_FEWEST_WEIGHTS = 100

#: Weights that all stay below this many steps have fewer bits, stored in 8.
_NARROW_STEPS = 8.5

#: A channel whose largest weight is a smaller share of the tensor's has no effect, so any scale
#: fits it.
_DEAD_SHARE = 1e-3

_TINY = 1e-30


class _WeightSpread(msgspec.Struct, frozen=True):
    """How the weights of a tensor fill their range."""

    #: The scale of each channel.
    scales: Floats
    #: The largest absolute weight of each channel, in units of its scale.
    largest: Floats
    #: The number of weights that INT8 clips or that are stored at its ends, not counting the
    #: largest stored one of each channel.
    saturated: int
    #: The number of all weights.
    size: int


def check_weight_scales(quantized: QuantizedModel) -> Iterator[Finding]:
    """Yield the suspicious scales of stored INT8 weights, one finding per pair."""
    stored = quantized.graph.stored
    checked: set[str] = set()
    for edge in quantized.edges:
        output = edge.pair.output
        scales = _plain_scales(edge)
        if output in checked or scales is None or not _is_weight(quantized, edge, stored):
            continue
        checked.add(output)
        values = _read_weight(quantized, edge, stored)
        axis = 1 if edge.pair.axis is None else edge.pair.axis
        if values.ndim > 1 and values.size and _fits_shape(scales, axis, values):
            yield from _check_spread(edge, _measure_spread(scales, axis, values))
    quantized.index.forget_constants()


def _plain_scales(edge: QuantizedEdge) -> Floats | None:
    """Return the scales of a pair that has one, or one per channel, for the whole range of INT8."""
    scales = edge.scales
    if scales is None or not scales.size or scales.ndim > 1:
        return None
    if edge.pair.block_size or edge.pair.levels:
        return None
    if (edge.dtype or edge.stored) != INT8 or not are_positive(scales):
        return None
    return scales.astype(np.float64).reshape(-1)


def _is_weight(
    quantized: QuantizedModel, edge: QuantizedEdge, stored: Mapping[str, onnx.TensorProto]
) -> bool:
    """Whether a pair is on a weight of known values, in a layer that is not dropped."""
    scope = quantized.index.scope(edge.edge)
    tensor = edge.edge.tensor
    if not scope.is_live(scope.node(edge.edge)):
        return False
    if edge.pair.tensor in stored:
        return True
    return scope.is_constant(tensor) and not explain_unknown_value(scope, tensor)


def _read_weight(
    quantized: QuantizedModel, edge: QuantizedEdge, stored: Mapping[str, onnx.TensorProto]
) -> Array:
    """Return the values of a weight as they are stored: floats or INT8."""
    tensor = stored.get(edge.pair.tensor)
    if tensor is None:
        values = quantized.index.scope(edge.edge).constant(edge.edge.tensor)
    else:
        values = quantized.graph.location.read_values(tensor)
    # numpy takes ten times as long for float16, which no instruction of most processors compares
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _fits_shape(scales: Floats, axis: int, values: Array) -> bool:
    """Whether a weight has as many channels along an axis as there are scales, or one scale."""
    if scales.size <= 1:
        return True
    return -values.ndim <= axis < values.ndim and values.shape[axis] == scales.size


def _measure_spread(scales: Floats, axis: int, values: Array) -> _WeightSpread:
    """Return how a weight fills its range; `axis` is that of several scales."""
    other_axes: tuple[int, ...] | None = None
    if scales.size > 1:
        channel_axis = axis % values.ndim
        other_axes = tuple(i for i in range(values.ndim) if i != channel_axis)
    is_integer = values.dtype == np.int8
    top = np.atleast_1d(values.max(axis=other_axes)).astype(np.float64)
    bottom = np.atleast_1d(values.min(axis=other_axes)).astype(np.float64)
    largest = np.maximum(top, -bottom)
    if not is_integer:
        largest = largest / scales
    saturated = 0
    if (largest >= INT8_LEVELS - 0.5).any():
        saturated = _count_saturated(values, scales, axis)
    if is_integer:
        saturated = max(saturated - scales.size, 0)
    return _WeightSpread(scales, largest, saturated, values.size)


def _count_saturated(values: Array, scales: Floats, axis: int) -> int:
    """Return how many weights INT8 clips, or for stored integers how many are 127 or -127."""
    if values.dtype == np.int8:
        at_top = np.count_nonzero(values == INT8_LEVELS)
        at_bottom = np.count_nonzero(values <= -INT8_LEVELS)
        return int(at_top + at_bottom)
    shape = [1] * values.ndim
    shape[axis % values.ndim] = scales.size
    limit = (scales * (INT8_LEVELS + 0.5)).astype(np.float32).reshape(shape)
    above = np.count_nonzero(values >= limit)
    below = np.count_nonzero(values <= -limit)
    return int(above + below)


def _check_spread(edge: QuantizedEdge, spread: _WeightSpread) -> Iterator[Finding]:
    if spread.size >= _FEWEST_WEIGHTS and spread.saturated > _MOST_SATURATED * spread.size:
        share = spread.saturated / spread.size
        problem = f"{share:.0%} of its {spread.size} weights are at the ends of the range"
        yield make_finding("saturated-weights", edge.edge, problem)
        return
    least, most = float(spread.largest.min()), float(spread.largest.max())
    if most < _NARROW_STEPS:
        return
    if least >= INT8_LEVELS / _MOST_RATIO and most <= INT8_LEVELS * _MOST_RATIO:
        return  # in every channel
    ratios = _range_ratios(spread)
    channel = int(np.argmax(np.abs(np.log(ratios))))
    ratio = ratios[channel]
    if ratio > _MOST_RATIO or ratio < 1 / _MOST_RATIO:
        problem = f"its range is {ratio:.3g} times its largest weight"
        if ratios.size > 1:
            problem += f", in channel {channel}"
        yield make_finding("weight-scale", edge.edge, problem)


def _range_ratios(spread: _WeightSpread) -> Floats:
    """Return the ratio of each channel's range to its largest weight, 1 for a dead channel."""
    largest = spread.largest * spread.scales
    most = largest.max()
    if not most > 0:  # also where a weight is NaN
        return np.ones_like(largest)
    has_effect = largest > _DEAD_SHARE * most
    ratios: Floats = np.where(has_effect, INT8_LEVELS / np.maximum(spread.largest, _TINY), 1.0)
    return ratios
