"""The search for the range whose levels counted values are rounded to with the least error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qdq.arrays import Floats
from qdq.compiled.library import Library, address
from qdq.compiled.tensor_totals import BINS

#: As LEAF in `compiled.c`.
_MOST_LEVELS = 128


def can_search_levels(values: Floats, levels: Floats) -> bool:
    """Whether the library searches for these ascending values and as many levels."""
    return levels.size <= _MOST_LEVELS and (values.size == 0 or values[-1] < BINS)


def search_levels(
    library: Library,
    values: Floats,
    moments: Floats,
    levels: Floats,
    candidates: npt.NDArray[np.int64],
) -> int:
    """Return the position of the candidate amax with the least square error, the first of several.

    `moments` [3, values + 1] are the running sums of the weights of the values, and of these times
    the values and their squares.
    """
    position: int = library.search_levels(
        address(values),
        values.size,
        address(moments),
        address(levels),
        levels.size,
        address(candidates),
        candidates.size,
    )
    return position
