"""Sums of float32 vectors in a fixed order, which every processor and numpy version has in common.

numpy's own sums depend on the processor and on the layout of an array. Here a value at position i
of a span is added to lane i % LANES, in turn; lanes are then joined in halves. The sums of the
spans of a longer vector are summed the same way. The error grows with the length divided by the
number of lanes, as in pairwise summation with blocks of that length. `compiled.c` has the same
order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Float32s = npt.NDArray[np.float32]

LANES = 1024

#: The most values that are added to one set of lanes.
SPAN = LANES * LANES


def sum_lanes(values: _Float32s) -> _Float32s:
    """Return the sums along the last axis, which must not be empty."""
    return _sum_spans(values, is_squared=False)


def sum_squared_lanes(values: _Float32s) -> _Float32s:
    """Return the sums of the squares along the last axis, which must not be empty."""
    return _sum_spans(values, is_squared=True)


def _sum_spans(values: _Float32s, is_squared: bool) -> _Float32s:
    width = values.shape[-1]
    if width <= SPAN:
        return _sum_span(values, is_squared)
    whole = width - width % SPAN
    spans = values[..., :whole].reshape(*values.shape[:-1], -1, SPAN)
    sums = _sum_span(spans, is_squared)
    if whole < width:
        last = _sum_span(values[..., whole:], is_squared)
        sums = np.concatenate([sums, last[..., None]], axis=-1)
    return _sum_spans(sums, is_squared=False)


def _sum_span(values: _Float32s, is_squared: bool) -> _Float32s:
    width = values.shape[-1]
    first = values[..., :LANES]
    lanes = first * first if is_squared else first.copy(order="K")
    for start in range(LANES, width, LANES):
        slab = values[..., start : start + LANES]
        target = lanes[..., : slab.shape[-1]]
        target += slab * slab if is_squared else slab
    return _join_lanes(lanes)


def _join_lanes(lanes: _Float32s) -> _Float32s:
    """Return the sum of the lanes, which it overwrites."""
    used = lanes.shape[-1]
    while used > 1:
        half = 1 << ((used - 1).bit_length() - 1)
        lanes[..., : used - half] += lanes[..., half:used]
        used = half
    total: _Float32s = lanes[..., 0]
    return total
