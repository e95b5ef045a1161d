"""Ranges that are given for weights, and the planned weights that they apply to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from qdq.graph.aliases import keeps_values
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.patterns import trace_axis_to_input
from qdq.planning.decisions import Placement, Plan
from qdq.quantizer import Quantizer

#: A weight, the axis of its scales and the size of their blocks, 0 without blocks.
WeightKey = tuple[str, int | None, int]


class GivenWeightRange(msgspec.Struct, frozen=True):
    """The ranges of one weight."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    #: The axis with one range for each channel, None for one range.
    axis: int | None
    #: Absolute values, as in `GivenRange`; 0 for a channel whose range follows from its values.
    amax: tuple[float, ...]
    #: Its line in the file, 0 where that is not known.
    line: int = 0
    #: The values along the axis that share a range, 0 where all of an index do. With blocks, `amax`
    #: has the order of a pair's scales.
    block_size: int = 0

    @property
    def key(self) -> WeightKey:
        """The weight with the axis and the size of blocks."""
        return self.tensor, self.axis, self.block_size


class AppliedWeightRange(msgspec.Struct, frozen=True):
    """A planned weight with given ranges."""

    #: The weight.
    tensor: str
    #: The axis it is quantized along, with a range for each channel or block; None for one range.
    axis: int | None
    #: The largest absolute value of each channel or block, or of the whole weight; 0 where the
    #: range follows from the values.
    amax: tuple[float, ...]
    #: The size of blocks, as in `GivenWeightRange`.
    block_size: int = 0

    @property
    def key(self) -> WeightKey:
        """The weight with the axis and the size of blocks."""
        return self.tensor, self.axis, self.block_size


def make_weight_key(placement: Placement) -> WeightKey:
    """Return the key of a placement's weight."""
    quantizer = placement.quantizer
    return placement.edge.qualified_tensor, quantizer.axis, quantizer.block_size


def find_applied_weights(
    index: GraphIndex, plan: Plan, weights: Iterable[GivenWeightRange]
) -> Iterator[AppliedWeightRange]:
    """Yield the planned weights that have given ranges, along the axis they are quantized along."""
    by_tensor: dict[str, list[GivenWeightRange]] = {}
    for weight in weights:
        by_tensor.setdefault(weight.tensor, []).append(weight)
    if not by_tensor:
        return
    done: set[WeightKey] = set()
    for placement in plan.placements:
        key = make_weight_key(placement)
        if placement.quantizer.calibrated or key in done:
            continue
        done.add(key)
        amax = _find_amax(
            index.scope(placement.edge), placement.edge, placement.quantizer, by_tensor
        )
        if amax:
            yield AppliedWeightRange(key[0], key[1], amax, key[2])


def _find_amax(
    scope: GraphIndex,
    edge: Edge,
    quantizer: Quantizer,
    by_tensor: Mapping[str, list[GivenWeightRange]],
) -> tuple[float, ...]:
    """Return the given ranges of a weight for a format, () where there are none that fit."""
    if quantizer.block_size:
        return _find_block_amax(edge, quantizer, by_tensor.get(edge.qualified_tensor, ()))
    by_channel: dict[str, list[GivenWeightRange]] = {}
    for tensor, weights in by_tensor.items():
        kept = [weight for weight in weights if not weight.block_size]
        if kept:
            by_channel[tensor] = kept
    return _find_weight_amax(scope, edge.tensor, quantizer.axis, by_channel)


def _find_block_amax(
    edge: Edge, quantizer: Quantizer, weights: Iterable[GivenWeightRange]
) -> tuple[float, ...]:
    """Return the given ranges of a weight's blocks, () where there are none of that size."""
    for weight in weights:
        if (weight.axis, weight.block_size) == (quantizer.axis, quantizer.block_size):
            return weight.amax
    return ()


def _find_weight_amax(
    scope: GraphIndex,
    tensor: str,
    axis: int | None,
    by_tensor: Mapping[str, list[GivenWeightRange]],
) -> tuple[float, ...]:
    """Return the given ranges of a constant along an axis, () where there are none that fit."""
    weights, source_axis = _trace_to_ranges(scope, tensor, axis, by_tensor)
    if axis is None:
        return _join_channels(weights)
    shape = scope.shape(tensor)
    channels = shape[axis] if shape is not None else None
    channels_first = sorted(weights, key=lambda weight: weight.axis is None)
    for weight in channels_first:
        if weight.axis not in (None, source_axis):
            continue
        amax = weight.amax
        if weight.axis is None:
            amax = amax * (channels or 1)
        if len(amax) == channels:
            return amax
    return ()


def _trace_to_ranges(
    scope: GraphIndex,
    tensor: str,
    axis: int | None,
    by_tensor: Mapping[str, list[GivenWeightRange]],
) -> tuple[list[GivenWeightRange], int | None]:
    """Return the ranges given for a constant, and the axis that the constant's axis is there.

    Operators between the two keep the values. There are no ranges where none are given.
    """
    while True:
        weights = by_tensor.get(qualified_name(scope.path, tensor)) or by_tensor.get(tensor)
        if weights is not None:
            return weights, axis
        scope = scope.defining_scope(tensor)
        producer = scope.producers.get(tensor)
        if producer is None or not keeps_values(scope, producer):
            return [], axis
        if axis is not None:
            axis = trace_axis_to_input(scope, producer, axis)
            if axis is None:
                return [], axis
        tensor = producer.inputs[0]


def _join_channels(weights: list[GivenWeightRange]) -> tuple[float, ...]:
    """Return the one range of a weight: the given one, or the largest of its channels.

    The result is 0 where the range of a channel is not known.
    """
    for weight in weights:
        if weight.axis is None:
            return weight.amax
    if not weights:
        return ()
    amax = weights[0].amax
    return (max(amax),) if all(amax) else (0.0,)
