"""Scales of weights: from the constant alone, or so that a layer's output changes least for inputs like those observed.

A rounded weight w + e changes an output by the sum of e*x. For inputs x that are independent
with mean m and variance v in each input channel, its expected square is
    sum_c v_c * sum_taps e^2  +  (sum_c m_c * sum_taps e)^2,
and the second term, the shift of the mean, dominates wherever inputs are one-sided or weights
nearly cancel, as in depthwise convolutions. That weight rounding shifts the mean is the
observation behind bias correction (Nagel et al. 2019, arXiv:1906.04721); here nothing is
corrected afterwards, the scale of each output channel is chosen so that the shift stays small.
"""

from __future__ import annotations

import numpy as np

from qdq.arrays import Array, Floats
from qdq.graph.operands import channel_amax
from qdq.quantizer import ELEMENT_TYPES, INT8, ElementType

#: Ranges that are tried, relative to the largest absolute weight of the channel. In small weights few
#: roundings average out, so they get a closer and wider search; 16 already bring the shift of large ones to a few percent.
_CLOSE = np.linspace(0.8, 1.2, 121, dtype=np.float32)
_COARSE = np.linspace(0.9, 1.1, 17, dtype=np.float32)
_SMALL_WEIGHT = 1 << 16

#: Plain rounding errors are least somewhere above this part of the largest weight, sought in 48 steps and then 17 within two of them.
_LEAST_FRACTION, _FRACTIONS, _NEARBY = 0.2, 48, 17

#: Elements of a block of channels that are worked on at a time, so that they stay in a core's cache.
_BLOCK = 1 << 16


def least_shift_amax(
    weight: Array,
    mean: Floats,
    variance: Floats,
    group: int = 1,
    element: ElementType = ELEMENT_TYPES[INT8],
) -> Array:
    """Return, for each output channel, the amax whose rounding to a type changes the layer's output least.

    `weight` is [output channels, input channels of one group, taps]; `mean` and `variance` have
    one value for each input channel of the layer.
    """
    outputs, inputs, taps = weight.shape
    rows = np.ascontiguousarray(weight, np.float32).reshape(outputs, inputs * taps)
    groups = np.arange(group)[:, None] * inputs + np.arange(inputs)
    means, variances = (
        np.repeat(m[groups], taps, axis=1).astype(np.float32) for m in (mean, variance)
    )
    of_row = np.arange(outputs) // max(outputs // group, 1)
    candidates = _CLOSE if rows.size <= _SMALL_WEIGHT else _COARSE
    return np.concatenate(
        [
            _least_cost(rows[b], means[of_row[b]], variances[of_row[b]], candidates, element)
            for b in _blocks(rows)
        ]
    )


def least_error_amax(
    weight: Array, axis: int | None, element: ElementType = ELEMENT_TYPES[INT8]
) -> Array:
    """Return the amax of a weight, or of each slice along `axis`, whose rounding to a type changes the weights least in mean square.

    Fractions of the largest absolute value are tried, up to the type's headroom, first some far apart and then those
    around the best one, as in pytorch-quantization's MSE calibrator.
    """
    rows = np.ascontiguousarray(
        weight if axis is None else np.moveaxis(weight, axis, 0), np.float32
    )
    rows = rows.reshape(1 if axis is None else len(rows), -1)
    apart = (element.headroom - _LEAST_FRACTION) / _FRACTIONS
    fractions = _LEAST_FRACTION + apart * np.arange(1, _FRACTIONS + 1)
    return np.concatenate(
        [_least_error(rows[b], fractions.astype(np.float32), apart, element) for b in _blocks(rows)]
    )


def _least_error(rows: Array, fractions: Array, apart: float, element: ElementType) -> Array:
    nothing, all_alike = np.zeros_like(rows[:1]), np.ones_like(rows[:1])
    mean, variance = (np.broadcast_to(m, rows.shape) for m in (nothing, all_alike))
    largest = channel_amax(rows, 0)
    coarse = _least_cost(rows, mean, variance, fractions, element) / np.maximum(
        largest, np.finfo(np.float32).tiny
    )
    nearby = np.linspace(-apart, apart, _NEARBY, dtype=np.float32)[:, None]
    return _least_cost(
        rows, mean, variance, np.clip(coarse + nearby, fractions[0], fractions[-1]), element
    )


def _blocks(rows: Array) -> list[slice]:
    height = max(_BLOCK // max(rows.shape[1], 1), 1)
    return [slice(first, first + height) for first in range(0, len(rows), height)]


@np.errstate(
    over="ignore", invalid="ignore"
)  # the cost of an enormous weight is infinite, and its largest value stays
def _least_cost(
    rows: Array, mean: Array, variance: Array, candidates: Array, element: ElementType
) -> Array:
    """Return the amax of each row with the least expected square of the output's change.

    Candidates are relative to the row's largest absolute value: one number for all rows, or a vector.
    """
    largest: Array = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    costs, error = np.empty((len(candidates), len(rows)), np.float32), np.empty_like(rows)
    for candidate, cost in zip(candidates, costs, strict=True):
        step = np.maximum(largest * (candidate / element.largest), np.finfo(np.float32).tiny)[
            :, None
        ]
        element.round_in_place(np.divide(rows, step, out=error), clip=bool(np.min(candidate) < 1.0))
        error *= step
        error -= rows
        np.einsum("ki,ki->k", error, mean, out=cost)
        np.square(cost, out=cost)
        np.add(cost, np.einsum("ki,ki->k", np.square(error, out=error), variance), out=cost)
    costs[np.isnan(costs)] = np.inf
    chosen = np.argmin(costs, axis=0)
    relative = np.broadcast_to(candidates.reshape(len(candidates), -1), costs.shape)
    return np.where(
        costs.min(axis=0) < np.inf, largest * relative[chosen, np.arange(len(rows))], largest
    )
