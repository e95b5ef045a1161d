"""Histograms of absolute values that do not depend on the order or the batches the values came in.

Bins are a power of two wide. A value beyond the last bin folds neighbouring bins together
until it fits; since floor(floor(x/w)/2) == floor(x/2w), the result is the histogram that one
pass with the final width would have made. Adding is therefore exact, streaming and mergeable.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qdq.index import Array

#: At least half of these are below the largest value seen, so 2048 are always in use.
BINS = 4096
_LOG_BINS = 12
_CANDIDATES = 256
#: Bins never get narrower than 2**-120, so that dividing by the width stays within float32.
_SMALLEST = -120


class Histogram:
    """Counts of absolute values in `BINS` bins of equal width, and the largest value seen."""

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        #: log2 of the bin width; meaningless while `amax` is 0.
        self.exponent = 0
        self.amax = 0.0

    def add(self, values: Array) -> None:
        """Count finite values; their absolute value is taken."""
        magnitudes = np.abs(values.ravel()).astype(np.float32, copy=False)
        largest = float(magnitudes.max(initial=0.0))
        self._reach(largest)
        if self.amax == 0.0:
            self.counts[0] += magnitudes.size
            return
        magnitudes *= np.float32(math.ldexp(1.0, -self.exponent))
        self.counts += np.bincount(magnitudes.astype(np.int32), minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram, as if its values had been added here."""
        if other.amax > 0.0:
            self._reach(other.amax)
            folded = _fold(other.counts, self.exponent - other.exponent)
        else:
            folded = other.counts
        self.counts += folded

    def percentile(self, percent: float) -> float:
        """Return the smallest bin edge with at least `percent` of the values below it, never above the largest seen."""
        cumulative = np.cumsum(self.counts)
        wanted = cumulative[-1] * (percent / 100.0)
        edge = int(np.searchsorted(cumulative, wanted)) + 1
        return min(self.amax, math.ldexp(float(edge), self.exponent))

    def least_error(self, levels: int) -> float:
        """Return the amax whose rounding to `levels` steps and clipping change the counted values least, in mean square.

        Candidates are the bin edges from 1/16 of the largest value up, as in pytorch-quantization's
        MSE calibrator, first some far apart and then all between the best one's neighbours; values
        stand at their bins' centres.
        """
        used = np.flatnonzero(self.counts)
        if self.amax == 0.0 or used.size == 0:
            return self.amax
        centres, weights = used.astype(np.float64) + 0.5, self.counts[used].astype(np.float64)
        top = int(used[-1]) + 1
        step = max(top // _CANDIDATES, 1)
        best = _least(centres, weights, np.arange(top, top // 16, -step), levels)
        best = _least(centres, weights, np.arange(min(best + step, top), max(best - step, 0), -1), levels)
        return min(self.amax, math.ldexp(float(best), self.exponent))

    def _reach(self, largest: float) -> None:
        if largest <= self.amax:
            return
        needed = max(math.frexp(largest)[1] - _LOG_BINS, _SMALLEST)
        if self.amax == 0.0:
            self.exponent = needed
        elif needed > self.exponent:
            self.counts = _fold(self.counts, needed - self.exponent)
            self.exponent = needed
        self.amax = largest


def _least(centres: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], candidates: npt.NDArray[np.int64], levels: int) -> int:
    """Return the candidate amax, in bins, with the least mean square error of rounding and clipping."""
    errors = []
    for amax in candidates:
        step = amax / levels
        rounded = np.minimum(np.rint(centres / step), levels) * step
        errors.append(float(np.dot(weights, np.square(rounded - centres))))
    return int(candidates[int(np.argmin(errors))])


def _fold(counts: npt.NDArray[np.int64], times: int) -> npt.NDArray[np.int64]:
    """Return the counts with each 2**times neighbouring bins joined, padded with empty bins."""
    if times == 0:
        return counts
    folded = np.zeros(BINS, np.int64)
    np.add.at(folded, np.arange(BINS) >> min(times, _LOG_BINS), counts)
    return folded
