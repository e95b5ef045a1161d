"""The square error of rounding counted values to grids, for many ranges at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qdq.arrays import Floats


class SquareErrorSums:
    """Running sums over values in ascending order, from which the error of any grid follows."""

    def __init__(self, values: Floats, weights: Floats) -> None:
        self._values = values
        zero = np.zeros(1)
        self._moments: list[Floats] = []
        for power in range(3):
            sums = np.cumsum(weights * values**power)
            self._moments.append(np.concatenate([zero, sums]))

    def find_least_error(self, candidates: npt.NDArray[np.int64], grid: Floats) -> int:
        """Return the candidate amax, in bins, with the least square error of rounding and clipping.

        `grid` holds the values of a type, ascending.
        """
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
