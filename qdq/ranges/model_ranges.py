"""The ranges of the pairs in a quantized model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge
from qdq.planning.block_pairs import has_block_scales, read_block_quantizer
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.symmetry import (
    CoarserActivation,
    exact_weight_amax,
    measure_coarsening,
    pair_amax,
)
from qdq.ranges.given_ranges import GivenRange, GivenRanges
from qdq.ranges.given_weights import GivenWeightRange, WeightKey
from qdq.ranges.range_limits import LARGEST_AMAX

#: The most that the steps of a tensor may grow: 8 bits around any zero point take 2.01 times at
#: most, which loses one bit.
LARGEST_STEP_RATIO = 4.0

#: The name of the ranges that a model has itself.
OWN_RANGES_NAME = "the model's own quantization"


def read_pair_ranges(quantized_model: QuantizedModel) -> GivenRanges:
    """Return the ranges of a model's pairs.

    An activation has the largest range of its pairs, a weight one for each channel. Weights whose
    integers are not symmetric are left out. So are activations whose scales are computed or not
    above 0. The range of a tensor that loses resolution in symmetric INT8 is a bound.
    """
    names = _name_tensors(quantized_model)
    amax: dict[str, float] = {}
    bounds: set[str] = set()
    weights: dict[WeightKey, GivenWeightRange] = {}
    for quantized in (*quantized_model.edges, *quantized_model.captured_edges):
        tensor = names[quantized.edge]
        is_constant = _is_constant(quantized_model, quantized)
        if is_constant:
            for weight in _read_weight_ranges(quantized_model, quantized, tensor):
                weights.setdefault(weight.key, weight)
        ranges = pair_amax(quantized)
        if ranges is None or (is_constant and ranges.size != 1):
            continue
        if 0.0 < ranges.max(initial=0) <= LARGEST_AMAX:
            amax[tensor] = max(float(ranges.max()), amax.get(tensor, 0.0))
            if measure_coarsening(quantized):
                bounds.add(tensor)
    by_tensor: list[GivenRange] = []
    for tensor, value in amax.items():
        by_tensor.append(GivenRange(tensor, value, at_most=tensor in bounds))
    return GivenRanges(
        OWN_RANGES_NAME, tuple(by_tensor), strict=False, weights=tuple(weights.values())
    )


def scale_axis(quantized_model: QuantizedModel, quantized: QuantizedEdge) -> int | None:
    """Return the axis of a pair's scales, counted from the front; None for one scale.

    One scale has an axis where the pair states one, of one channel.
    """
    scales = quantized.scales
    if scales is None:
        return None
    scope = quantized_model.index.scope(quantized.edge)
    shape = scope.shape(quantized.edge.tensor) or ()
    if scales.ndim == len(shape) and scales.size > 1 < scales.ndim:
        return _longest_axis(scales)
    stated_axis = quantized.pair.axis
    axis = 1 if stated_axis is None else stated_axis
    if axis < 0:
        axis += len(shape)
    if scales.size > 1:
        return axis
    has_axis = stated_axis is not None and scales.ndim == 1 and 0 <= axis < len(shape)
    return axis if has_axis and shape[axis] == 1 else None


def find_coarser_activations(quantized_model: QuantizedModel) -> tuple[CoarserActivation, ...]:
    """Return the activations that lose resolution in symmetric INT8, each once.

    Raises ModelError where the steps of one grow more than `LARGEST_STEP_RATIO` times.
    """
    coarser: dict[str, CoarserActivation] = {}
    for quantized in quantized_model.edges:
        if _is_constant(quantized_model, quantized):
            continue
        cost = measure_coarsening(quantized)
        if not cost:
            continue
        known = coarser.get(cost.tensor)
        if known is None or cost.step_ratio >= known.step_ratio:
            coarser[cost.tensor] = cost
    for cost in coarser.values():
        if cost.step_ratio > LARGEST_STEP_RATIO:
            raise ModelError(_describe_loss(quantized_model, cost))
    return tuple(coarser.values())


def _is_constant(quantized_model: QuantizedModel, quantized: QuantizedEdge) -> bool:
    edge = quantized.edge
    return quantized_model.index.scope(edge).is_constant(edge.tensor)


def _read_weight_ranges(
    quantized_model: QuantizedModel, quantized: QuantizedEdge, tensor: str
) -> Iterator[GivenWeightRange]:
    """Yield the ranges of a weight of a name in blocks, and in channels.

    There are none where its integers are not symmetric, and none of channels where blocks have
    scales. The range is 0 where the scale is 0 or no finite number.
    """
    quantizer = read_block_quantizer(quantized_model, quantized)
    if quantizer is not None and quantized.scales is not None:
        amax = quantized.scales.astype(np.float64) * quantizer.element.largest
        size = quantizer.block_size
        yield GivenWeightRange(tensor, quantizer.axis, _flatten_amax(amax), block_size=size)
    channel_amax = exact_weight_amax(quantized)
    if channel_amax is None or not channel_amax.size:
        return
    if quantized.pair.block_size and has_block_scales(quantized):
        return
    axis = scale_axis(quantized_model, quantized)
    yield GivenWeightRange(tensor, axis, _flatten_amax(channel_amax))


def _flatten_amax(amax: Array) -> tuple[float, ...]:
    usable_amax = np.where(amax <= LARGEST_AMAX, amax, 0.0)
    return tuple(map(float, usable_amax.reshape(-1)))


def _name_tensors(quantized_model: QuantizedModel) -> dict[Edge, str]:
    """Return the name of the tensor of each pair: after the path of the body that reads it.

    Where the pair is outside of that body, it is the name in the graph that defines the tensor.
    """
    names = {pair.edge: pair.edge.qualified_tensor for pair in quantized_model.edges}
    for pair in quantized_model.captured_edges:
        tensor = pair.edge.tensor
        scope = quantized_model.index.scope(pair.edge).defining_scope(tensor)
        names[pair.edge] = qualified_name(scope.path, tensor)
    return names


def _longest_axis(values: Array) -> int:
    return max(range(values.ndim), key=values.shape.__getitem__)


def _describe_loss(quantized_model: QuantizedModel, cost: CoarserActivation) -> str:
    name = quantized_model.original.path or quantized_model.original.name
    ratio = f"{cost.step_ratio:.0f} times as large (at most {LARGEST_STEP_RATIO:g} are allowed)"
    return (
        f"{name}: tensor {cost.tensor!r} is quantized to {cost.dtype}, and INT8 of the same range "
        f"has steps {ratio}. Pass --existing replace with --data to calibrate it for INT8."
    )
