"""Findings about the weights themselves: clipped by their scale, or far from filling it. The only check that reads them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from qdq.arrays import Array, Floats
from qdq.checking.finding import Finding, make_finding
from qdq.graph.bodies import read_tensor_values
from qdq.graph.pairs import stored_tensors
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantizer import INT8, INT8_LEVELS

#: How far a channel's range may be from its largest weight; pairs that qdq, ONNX Runtime and Model Optimizer choose stay within 2.
_FAR = 4.0

#: Share of a weight that is clipped, or stored at the ends of its range besides the largest of each channel, that is called saturated.
_SATURATED = 0.05

#: Of fewer weights a share says nothing: the scale that changes the layer's output least may clip one of two.
_FEW = 100

#: Weights that all stay below this many steps are of fewer bits, stored in 8.
_NARROW = 8.5

#: A channel whose largest weight is less than so much of the tensor's is as good as dead, and its scale is free.
_DEAD = 1e-3


class _Spread(msgspec.Struct, frozen=True):
    """The weights of each channel, in units of its scale."""

    largest: Floats
    #: How many of all weights INT8 clips, or are stored at its ends besides the largest of each channel, and how many there are.
    ends: int
    size: int


def check_weight_scales(quantized: QuantizedModel) -> Iterator[Finding]:
    """Yield what is suspicious about the scales of stored weights."""
    stored = stored_tensors(quantized.source.model.graph)
    told: set[str] = set()
    for edge in quantized.edges:
        scope, pair = quantized.index.scope(edge.edge), edge.pair
        if (
            pair.output in told
            or edge.scales is None
            or pair.block_size
            or pair.levels
            or edge.scales.ndim > 1
            or not (edge.scales > 0).all()
        ):
            continue
        if (edge.dtype or edge.stored) == INT8 and (
            pair.tensor in stored or scope.is_constant(edge.edge.tensor)
        ):
            told.add(pair.output)
            values = (
                read_tensor_values(
                    stored[pair.tensor], quantized.source.name, quantized.source.folder
                )
                if pair.tensor in stored
                else None
            )
            values = scope.constant(edge.edge.tensor) if values is None else values
            if values.ndim > 1 and (spread := _spread(edge, values)) is not None:
                yield from _judged(edge, spread)
    quantized.index.forget_constants()


def _spread(edge: QuantizedEdge, values: Array) -> _Spread | None:
    """Return how a weight fills its range; None where its scales do not fit it."""
    scales = edge.scales.astype(np.float64).reshape(-1) if edge.scales is not None else np.ones(1)
    axis = 1 if edge.pair.axis is None else edge.pair.axis
    if scales.size > 1 and not (
        -values.ndim <= axis < values.ndim and values.shape[axis] == scales.size
    ):
        return None
    others = (
        tuple(i for i in range(values.ndim) if i != axis % values.ndim) if scales.size > 1 else None
    )
    integers = values.dtype == np.int8
    unit = np.ones_like(scales) if integers else scales
    top, bottom = (
        np.atleast_1d(reduce(values, axis=others)).astype(np.float64) / unit
        for reduce in (np.max, np.min)
    )
    largest = np.maximum(top, -bottom)
    ends = _at_ends(values, unit, axis) if (largest >= INT8_LEVELS - 0.5).any() else 0
    return _Spread(largest, max(ends - scales.size, 0) if integers else ends, values.size)


def _at_ends(values: Array, unit: Floats, axis: int) -> int:
    """Return how many stored integers are 127 or -127, or how many weights are clipped to that."""
    if values.dtype == np.int8:
        return int(
            np.count_nonzero(values == INT8_LEVELS) + np.count_nonzero(values <= -INT8_LEVELS)
        )
    shape = [1] * values.ndim
    shape[axis % values.ndim] = unit.size
    limit = (unit * (INT8_LEVELS + 0.5)).astype(np.float32).reshape(shape)
    return int(np.count_nonzero(values >= limit) + np.count_nonzero(values <= -limit))


def _judged(edge: QuantizedEdge, spread: _Spread) -> Iterator[Finding]:
    if spread.size >= _FEW and spread.ends > _SATURATED * spread.size:
        yield make_finding(
            "saturated-weights",
            edge.edge,
            f"{spread.ends / spread.size:.0%} of its {spread.size} weights lie at the ends of the range",
        )
        return
    if spread.largest.max() < _NARROW:
        return
    scales = edge.scales.astype(np.float64).reshape(-1) if edge.scales is not None else np.ones(1)
    real = spread.largest * scales
    alive = real > _DEAD * real.max() if real.max() > 0 else np.zeros_like(real, bool)
    ratios = np.where(alive, INT8_LEVELS / np.maximum(spread.largest, 1e-30), 1.0)
    worst = int(np.argmax(np.abs(np.log(ratios))))
    if ratios[worst] > _FAR or ratios[worst] < 1 / _FAR:
        channel = f", in channel {worst}" if ratios.size > 1 else ""
        says = f"its range is {ratios[worst]:.3g} times its largest weight{channel}"
        yield make_finding("weight-scale", edge.edge, says)
