"""The search for the scales of weights, over all rows of a weight in one call."""

from __future__ import annotations

import numpy as np

from qdq.arrays import Array
from qdq.compiled.library import Library, address


def search_scales(
    library: Library,
    rows: Array,
    moments: tuple[Array, Array, Array] | None,
    candidates: Array,
    levels: int,
    is_e4m3: bool,
) -> Array:
    """Return the amax of each row with the least cost, float32 [rows].

    `rows` is float32 [rows, width]. `moments` are the means and variances float32 [groups, width]
    and the group of each row, or None for the plain error. `candidates` is float32
    [candidates, 1] for all rows, or [candidates, rows].
    """
    rows = np.require(rows, np.float32, ("C", "A"))
    candidates = np.require(candidates, np.float32, ("C", "A"))
    mean = variance = groups = None
    if moments is not None:
        mean, variance, groups = moments
        mean = np.require(mean, np.float32, ("C", "A"))
        variance = np.require(variance, np.float32, ("C", "A"))
        groups = np.require(groups, np.int64, ("C", "A"))
    count, width = rows.shape
    amax = np.empty(count, np.float32)
    library.search_scales(
        address(rows),
        count,
        width,
        address(mean),
        address(variance),
        address(groups),
        address(candidates),
        *candidates.shape,
        levels,
        is_e4m3,
        address(amax),
        library.has_avx2,
    )
    return amax
