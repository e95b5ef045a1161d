"""The square error of rounding counted values to grids, for many ranges at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qdq.arrays import Floats
from qdq.compiled.level_search import can_search_levels, search_levels
from qdq.compiled.library import find_library


class SquareErrorSums:
    """Running sums over values in ascending order, from which the error of any grid follows."""

    def __init__(self, values: Floats, weights: Floats) -> None:
        self._values = np.ascontiguousarray(values, np.float64)
        #: The sums of the weights before each value, and of these times the values and squares.
        self._moments = np.zeros((3, values.size + 1))
        for power, moment in enumerate(self._moments):
            np.cumsum(weights * values**power, out=moment[1:])

    def find_least_error(self, candidates: npt.NDArray[np.int64], grid: Floats) -> int:
        """Return the candidate amax, in bins, with the least square error of rounding and clipping.

        `grid` holds the values of a type, ascending.
        """
        library = find_library()
        if library is not None and can_search_levels(self._values, grid):
            levels = np.ascontiguousarray(grid, np.float64)
            position = search_levels(library, self._values, self._moments, levels, candidates)
            return int(candidates[position])
        scales = candidates[:, None] / grid[-1]
        errors = self._measure(grid * scales)
        best = candidates[np.argmin(errors)]
        return int(best)

    def _measure(self, grids: Floats) -> Floats:
        """Return the square error of rounding to the nearest value of each row of grid values."""
        midpoints = (grids[:, :-1] + grids[:, 1:]) / 2
        cuts = np.pad(np.searchsorted(self._values, midpoints), ((0, 0), (1, 1)))
        cuts[:, -1] = self._values.size
        counts, sums, squares = [np.diff(moment[cuts], axis=1) for moment in self._moments]
        changes = squares - 2 * grids * sums + grids**2 * counts
        errors: Floats = np.sum(np.maximum(changes, 0.0), axis=1)
        return errors
