"""The ranges that the pairs of a quantized model hold."""

from __future__ import annotations

import numpy as np

from qdq.errors import ModelError
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.symmetry import (
    CoarserActivation,
    exact_weight_amax,
    measure_coarsening,
    pair_amax,
)
from qdq.ranges.given_ranges import LARGEST_AMAX, GivenRange, GivenRanges, GivenWeightRange

#: How many times as large the steps of a tensor may become: 8 bits around any zero point take 2.01 times at most, which loses one bit.
LARGEST_STEP_RATIO = 4.0

#: What the ranges that a model has itself are called.
OWN_RANGES_NAME = "the model's own quantization"


def read_pair_ranges(found: QuantizedModel) -> GivenRanges:
    """Return the ranges that a model's pairs say: of activations the largest that any pair on the tensor has, of weights those of each channel.

    Weights whose integers are not symmetric are not among them, nor are activations whose scales are computed or not above 0. Of a
    tensor that symmetric INT8 costs resolution the range is a bound.
    """
    amax: dict[str, float] = {}
    bounds: set[str] = set()
    weights: dict[tuple[str, int | None], GivenWeightRange] = {}
    for quantized in found.edges:
        tensor, constant = (
            quantized.edge.qualified_tensor,
            found.index.scope(quantized.edge).is_constant(quantized.edge.tensor),
        )
        exact = exact_weight_amax(quantized) if constant else None
        if exact is not None and exact.size and np.isfinite(exact).all():
            axis = scale_axis(found, quantized)
            weights.setdefault(
                (tensor, axis), GivenWeightRange(tensor, axis, tuple(map(float, exact.reshape(-1))))
            )
        ranges = pair_amax(quantized)
        if (
            ranges is not None
            and (not constant or ranges.size == 1)
            and 0.0 < ranges.max(initial=0) <= LARGEST_AMAX
        ):
            amax[tensor] = max(float(ranges.max()), amax.get(tensor, 0.0))
            bounds |= {tensor} if measure_coarsening(quantized) else set()
    by_tensor = tuple(
        GivenRange(tensor, value, at_most=tensor in bounds) for tensor, value in amax.items()
    )
    return GivenRanges(OWN_RANGES_NAME, by_tensor, strict=False, weights=tuple(weights.values()))


def scale_axis(found: QuantizedModel, quantized: QuantizedEdge) -> int | None:
    """Return the axis that a pair's scales go along, counted from the front; None for one scale, unless it says that it is that of the one channel."""
    if quantized.scales is None:
        return None
    scope, scales = found.index.scope(quantized.edge), quantized.scales
    shape = scope.shape(quantized.edge.tensor) or ()
    if scales.ndim == len(shape) and scales.size > 1 < scales.ndim:
        return max(range(scales.ndim), key=scales.shape.__getitem__)
    axis = 1 if quantized.pair.axis is None else quantized.pair.axis
    axis += len(shape) if axis < 0 else 0
    told = (
        scales.ndim == 1
        and quantized.pair.axis is not None
        and 0 <= axis < len(shape)
        and shape[axis] == 1
    )
    return axis if scales.size > 1 or told else None


def find_coarser_activations(found: QuantizedModel) -> tuple[CoarserActivation, ...]:
    """Return the activations that symmetric INT8 costs resolution, each once; raises ModelError where one loses more than `LARGEST_STEP_RATIO` allows."""
    costs: dict[str, CoarserActivation] = {}
    for quantized in found.edges:
        if not found.index.scope(quantized.edge).is_constant(quantized.edge.tensor) and (
            cost := measure_coarsening(quantized)
        ):
            costs[cost.tensor] = max(cost, costs.get(cost.tensor, cost), key=lambda c: c.step_ratio)
    for cost in costs.values():
        if cost.step_ratio > LARGEST_STEP_RATIO:
            raise ModelError(
                f"{found.original.path or found.original.name}: tensor {cost.tensor!r} is quantized to {cost.dtype}; INT8 of the same range has steps "
                f"{cost.step_ratio:.0f} times as large (at most {LARGEST_STEP_RATIO:g} are taken); pass --existing replace with --data to calibrate it for INT8"
            )
    return tuple(costs.values())
