"""Ranges of weights: from the constant alone, or with the least change of the layer's output.

A rounded weight w + e changes an output by the sum of e*x. For inputs x that are independent,
with mean m and variance v in each input channel, its expected square is
    sum_c v_c * sum_taps e^2  +  (sum_c m_c * sum_taps e)^2.
The second term, the shift of the mean, dominates where inputs are one-sided or weights nearly
cancel, as in depthwise convolutions. That weight rounding shifts the mean is the observation that
bias correction is based on (Nagel et al. 2019, arXiv:1906.04721). Here nothing is corrected
afterwards: the scale of each output channel is chosen so that the shift stays small.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qdq.arrays import Array, Floats
from qdq.compiled.library import find_library
from qdq.compiled.scale_search import search_scales
from qdq.graph.operands import channel_amax
from qdq.ordered_sums import LEAF, sum_narrow_rows, sum_rows
from qdq.quantizer import ELEMENT_TYPES, INT8, ElementType

#: Ranges that are tried, relative to the largest absolute weight of the channel. In small weights
#: few roundings average out, so they get a finer and wider search. For large ones, 16 candidates
#: already bring the shift to a few percent.
_FINE_CANDIDATES = np.linspace(0.8, 1.2, 121, dtype=np.float32)
_COARSE_CANDIDATES = np.linspace(0.9, 1.1, 17, dtype=np.float32)
_SMALL_WEIGHT = 1 << 16

#: Plain rounding errors have their minimum above this fraction of the largest weight. It is
#: searched in 48 steps, and then in 17 steps within two of them.
_LEAST_FRACTION = 0.2
_FRACTION_STEPS = 48
_REFINING_STEPS = 17

#: Elements of a block of channels that are processed together: they stay in a core's cache.
_BLOCK = 1 << 16

_TINY = np.finfo(np.float32).tiny


class _InputMoments(NamedTuple):
    """Means and variances of the inputs that a weight's rows are multiplied with."""

    #: float32 [groups, width of a row].
    mean: Array
    variance: Array
    #: The group of each row.
    groups: Array

    def of_rows(self, block: slice) -> tuple[Array, Array]:
        """Return the means and variances of some rows."""
        groups = self.groups[block]
        return self.mean[groups], self.variance[groups]


def least_shift_amax(
    weight: Array,
    mean: Floats,
    variance: Floats,
    group: int = 1,
    element: ElementType = ELEMENT_TYPES[INT8],
) -> Array:
    """Return, per output channel, the amax whose rounding changes the layer's output least.

    `weight` is [output channels, input channels of one group, taps]; `mean` and `variance` have
    one value per input channel of the layer. The result has one value per output channel.
    """
    outputs, inputs, taps = weight.shape
    rows = np.ascontiguousarray(weight, np.float32).reshape(outputs, inputs * taps)
    first_channels = np.arange(group)[:, None] * inputs
    group_channels = first_channels + np.arange(inputs)
    group_means = np.repeat(mean[group_channels], taps, axis=1)
    group_means = group_means.astype(np.float32)
    group_variances = np.repeat(variance[group_channels], taps, axis=1)
    group_variances = group_variances.astype(np.float32)
    outputs_per_group = max(outputs // group, 1)
    row_groups = np.arange(outputs) // outputs_per_group
    candidates = _FINE_CANDIDATES
    if rows.size > _SMALL_WEIGHT:
        candidates = _COARSE_CANDIDATES
    moments = _InputMoments(group_means, group_variances, row_groups)
    return _choose_least_cost(rows, moments, candidates[:, None], element)


def least_error_amax(
    weight: Array, axis: int | None, element: ElementType = ELEMENT_TYPES[INT8]
) -> Array:
    """Return the amax whose rounding changes a weight least in mean square.

    The result has one value per slice along `axis`, or one value without an axis. Fractions of
    the largest absolute value are tried, up to the type's headroom: first in large steps, then
    around the best one, as in pytorch-quantization's MSE calibrator.
    """
    if axis is None:
        rows = np.ascontiguousarray(weight, np.float32)
        rows = rows.reshape(1, -1)
    else:
        slices = np.moveaxis(weight, axis, 0)
        rows = np.ascontiguousarray(slices, np.float32)
        rows = rows.reshape(len(rows), -1)
    step = (element.headroom - _LEAST_FRACTION) / _FRACTION_STEPS
    steps = np.arange(1, _FRACTION_STEPS + 1)
    fractions = _LEAST_FRACTION + step * steps
    fractions = fractions.astype(np.float32)
    coarse_amax = _choose_least_cost(rows, None, fractions[:, None], element)
    largest = channel_amax(rows, 0)
    largest = np.maximum(largest, _TINY)
    coarse_fractions = coarse_amax / largest
    offsets = np.linspace(-step, step, _REFINING_STEPS, dtype=np.float32)
    candidates = coarse_fractions + offsets[:, None]
    candidates = np.clip(candidates, fractions[0], fractions[-1])
    return _choose_least_cost(rows, None, candidates, element)


def _choose_least_cost(
    rows: Array, moments: _InputMoments | None, candidates: Array, element: ElementType
) -> Array:
    """Return the amax per row with the least expected square of the output's change.

    Without moments it is the one with the least square error. Candidates are relative to the row's
    largest absolute value: [candidates, 1] for all rows, or [candidates, rows].
    """
    library = find_library()
    if library is not None:
        is_e4m3 = not element.is_integer
        groups = None if moments is None else (moments.mean, moments.variance, moments.groups)
        return search_scales(library, rows, groups, candidates, element.largest, is_e4m3)
    blocks = []
    for block in _split_rows(rows):
        block_moments = None if moments is None else moments.of_rows(block)
        block_candidates = candidates
        if candidates.shape[1] > 1:
            block_candidates = candidates[:, block]
        amax = _choose_in_block(rows[block], block_moments, block_candidates, element)
        blocks.append(amax)
    return np.concatenate(blocks)


def _split_rows(rows: Array) -> list[slice]:
    """Return blocks of rows that fit into a core's cache."""
    count, width = rows.shape
    height = max(_BLOCK // max(width, 1), 1)
    blocks = []
    for first in range(0, count, height):
        blocks.append(slice(first, first + height))
    return blocks


# Where all costs are infinite, the largest value is the range.
@np.errstate(over="ignore", invalid="ignore")
def _choose_in_block(
    rows: Array,
    moments: tuple[Array, Array] | None,
    candidates: Array,
    element: ElementType,
) -> Array:
    """Return the amax per row as `_choose_least_cost` does.

    Costs are relative to the square of the row's largest value: no weight is too small or too large
    for them.
    """
    largest = _find_largest(rows)
    is_narrow = rows.shape[1] <= LEAF
    if is_narrow:  # numpy takes long for each row
        rows = _transpose(rows)
        moments = moments and (_transpose(moments[0]), _transpose(moments[1]))
    costs = np.empty((len(candidates), largest.size), np.float32)
    scratch = np.empty((2, *rows.shape), np.float32)
    for candidate, cost in zip(candidates, costs, strict=True):
        step = largest * (candidate / np.float32(element.largest))
        step = np.maximum(step, _TINY)
        step = step if is_narrow else step[:, None]
        is_clipping = bool(np.min(candidate) < 1.0)
        _find_errors(rows, step, element, is_clipping=is_clipping, scratch=scratch)
        step_cost = _measure_cost(scratch, moments, is_narrow)
        np.multiply(step_cost, candidate * candidate, out=cost)
    return _pick_least(costs, candidates, largest)


def _find_largest(rows: Array) -> Array:
    """Return the largest absolute value per row."""
    highest = rows.max(axis=1)
    lowest = rows.min(axis=1)
    largest: Array = np.maximum(np.abs(highest), np.abs(lowest))
    return largest


def _find_errors(
    rows: Array, step: Array, element: ElementType, *, is_clipping: bool, scratch: Array
) -> None:
    """Write the rounding error of each element, in steps, to the first of two blocks."""
    error, weights = scratch
    np.multiply(rows, np.float32(1.0) / step, out=weights)
    element.round_into(weights, error, clip=is_clipping)
    error -= weights


def _transpose(matrix: Array) -> Array:
    return np.ascontiguousarray(matrix.T)


def _pick_least(costs: Array, candidates: Array, largest: Array) -> Array:
    """Return the amax per row of the first candidate with the least cost, of finite ones."""
    costs[np.isnan(costs)] = np.inf
    fractions = np.broadcast_to(candidates, costs.shape)
    best = np.argmin(costs, axis=0)
    best_fractions = fractions[best, np.arange(len(largest))]
    is_finite = costs.min(axis=0) < np.inf
    return np.where(is_finite, largest * best_fractions, largest)


def _measure_cost(
    scratch: Array, moments: tuple[Array, Array] | None, is_transposed: bool
) -> Array:
    """Return the expected square of the output's change per row, in squares of steps.

    The first of two blocks holds the errors in steps; both are overwritten.
    """
    spreads, shifts = scratch
    if moments is not None:
        np.multiply(spreads, moments[0], out=shifts)
    np.square(spreads, out=spreads)
    if moments is None:
        return sum_narrow_rows(spreads) if is_transposed else sum_rows(spreads)
    spreads *= moments[1]
    if is_transposed:
        spread, shift = sum_narrow_rows(spreads), sum_narrow_rows(shifts)
    else:
        spread, shift = sum_rows(scratch)
    shift *= shift
    cost: Array = shift + spread
    return cost
