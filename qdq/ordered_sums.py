"""Sums of float32 rows in an order that every numpy version and the compiled part have in common.

numpy adds a row that is contiguous in memory by pairwise summation, as `compiled.c` does, but
versions before 2.3 split rows at their buffer of 8192 values. Rows are therefore split into spans
here, whose sums are added in double precision.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: The most values of a span.
SPAN = 4096

#: The most values that pairwise summation adds in lanes, and the number of lanes.
LEAF = 128
_LANES = 8


def sum_rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the sums along the last axis of values in C order, which has at least one value."""
    width = values.shape[-1]
    if width <= SPAN:
        sums: npt.NDArray[np.float32] = values.sum(axis=-1)
        return sums
    whole = width - width % SPAN
    spans = values[..., :whole].reshape(*values.shape[:-1], -1, SPAN)
    parts = [spans.sum(axis=-1)]
    if whole < width:
        last = values[..., whole:].sum(axis=-1)
        parts.append(last[..., None])
    span_sums = np.concatenate(parts, axis=-1, dtype=np.float64)
    totals: npt.NDArray[np.float64] = np.add.accumulate(span_sums, axis=-1)
    return totals[..., -1].astype(np.float32)


def sum_narrow_rows(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the sums along the first axis, of at most `LEAF` values, in the order of `sum_rows`.

    numpy takes much less time for many rows this way.
    """
    whole = len(columns) - len(columns) % _LANES
    if whole == 0:
        total = np.zeros(columns.shape[1:], np.float32)
    else:
        lanes = columns[:_LANES]
        for start in range(_LANES, whole, _LANES):
            lanes = lanes + columns[start : start + _LANES]
        pairs = lanes[0::2] + lanes[1::2]
        total = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
    for value in columns[whole:]:
        total += value
    return total
