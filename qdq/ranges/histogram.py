"""Histograms of absolute values that do not depend on the order or the batches the values came in.

Bins are a power of two wide. A value beyond the last bin folds neighbouring bins together
until it fits; since floor(floor(x/w)/2) == floor(x/2w), the result is the histogram that one
pass with the final width would have made. Adding is therefore exact, streaming and mergeable.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qdq.arrays import Array, Floats
from qdq.quantizer import ElementType

#: At least half of these are below the largest value seen, so 2048 are always in use.
BINS = 4096
_LOG_BINS = 12
_CANDIDATES = 256

#: No entropy range is below this many bins: pytorch-quantization's `start_bin`.
_FIRST_BIN = 128

#: Candidates whose levels are gathered at a time.
_TOGETHER = 512

#: Far less than a bin, and more than float64 errs in a multiple of a bound.
_ROUNDING = 1e-9

#: Bins never get narrower than 2**-120, so that dividing by the width stays within float32.
_SMALLEST = -120

#: What bytes begin with: exponent, amax and the bytes of each count, and how many these may be.
_HEAD, _WIDTHS = "<idB", (1, 2, 4, 8)

#: Values that are counted at a time, few enough to stay in a core's cache, and the counters that each bin has meanwhile.
_BLOCK, _LANES, _ONE = 1 << 17, 2, np.int64(1)


class Histogram:
    """Counts of absolute values in `BINS` bins of equal width, and the largest value seen."""

    def __init__(self) -> None:
        #: Some counters for each bin: neighbouring values go to different ones, since counting up the same one twice in a
        #: row (zeros behind a Relu) makes a core wait.
        self._lanes: npt.NDArray[np.int64] = np.zeros((_LANES, BINS), np.int64)
        #: log2 of the bin width; meaningless while `amax` is 0.
        self.exponent = 0
        self.amax = 0.0

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many values lie in each bin."""
        counts: npt.NDArray[np.int64] = self._lanes.sum(axis=0)
        return counts

    def add(self, values: Array, largest: float | None = None) -> None:
        """Count finite values; their absolute value is taken, of which `largest` is the largest, where that is known."""
        flat = values.ravel().astype(np.float32, copy=False)
        self._reach(
            float(
                np.float32(
                    max(values.max(initial=0.0), -values.min(initial=0.0))
                    if largest is None
                    else largest
                )
            )
        )
        if self.amax == 0.0:
            self._lanes[0, 0] += flat.size
            return
        scale = np.float32(math.ldexp(1.0, -self.exponent))
        for first in range(0, flat.size, _BLOCK):
            np.add.at(
                self._lanes.reshape(-1), _ROOM.counters(flat[first : first + _BLOCK], scale), _ONE
            )

    def merged(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        made = Histogram()
        made._reach(max(self.amax, other.amax))
        for one in (self, other):
            made._lanes[0] += (
                _fold(one.counts, made.exponent - one.exponent) if one.amax > 0.0 else one.counts
            )
        return made

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads, the same on every machine: the bins up to the last that holds something."""
        counts = self.counts
        used = np.flatnonzero(counts)
        counts = counts[: used[-1] + 1 if used.size else 0]
        width = next(
            width for width in _WIDTHS if int(counts.max(initial=0)) >> (8 * width - 1) == 0
        )
        return (
            struct.pack(_HEAD, self.exponent, self.amax, width)
            + counts.astype(f"<i{width}").tobytes()
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Histogram:
        """Return the histogram that `to_bytes` wrote; raises ValueError for anything else."""
        made, head = cls(), struct.calcsize(_HEAD)
        if len(content) < head or content[head - 1] not in _WIDTHS:
            raise ValueError("a histogram is cut short")
        made.exponent, made.amax, width = struct.unpack(_HEAD, content[:head])
        counts = np.frombuffer(content[head:], f"<i{width}")
        made._lanes[0, : counts.size] = counts
        return made

    def percentile(self, percent: float) -> float:
        """Return the smallest bin edge with at least `percent` of the values below it, never above the largest seen."""
        cumulative = np.cumsum(self.counts)
        wanted = math.ceil(
            int(cumulative[-1]) * Fraction(str(percent)) / 100
        )  # of the decimal number that was written
        edge = int(np.searchsorted(cumulative, wanted)) + 1
        return min(self.amax, math.ldexp(float(edge), self.exponent))

    def least_error(self, element: ElementType) -> float:
        """Return the amax whose rounding and clipping change the counted values least, in mean square; see `find_least_error_amax`."""
        return find_least_error_amax([(1.0, self)], element)

    def least_divergence(self, element: ElementType) -> float:
        """Return the amax whose quantized distribution says most about the clipped one: least Kullback-Leibler divergence.

        The algorithm is the entropy calibrator of TensorRT (Migacz, 8-bit Inference with TensorRT, GTC 2017) as
        pytorch-quantization spells it: from bin 128 on every bin edge is a candidate, what lies beyond is added to its
        last bin, bins are joined into one level for each value of the type and spread evenly again over those that hold
        something, the lowest bin is taken to hold what its neighbour does, and of equal candidates the largest counts.
        """
        used = np.flatnonzero(self.counts)
        if self.amax == 0.0 or used.size == 0:
            return self.amax
        top = int(used[-1]) + 1
        counts = self.counts[:top].astype(np.float64)
        counts[0] = counts[min(1, top - 1)]
        of_counts, candidates = _Divergences(counts), np.arange(min(_FIRST_BIN, top), top + 1)
        blocks = [
            candidates[first : first + _TOGETHER] for first in range(0, candidates.size, _TOGETHER)
        ]
        divergences = np.concatenate([of_counts.of(block, element.bounds()) for block in blocks])
        best = int(candidates[divergences.size - 1 - int(np.argmin(divergences[::-1]))])
        return min(self.amax, math.ldexp(float(best), self.exponent))

    def error(self, amax: float, element: ElementType, power: float = 2.0) -> float:
        """Return the mean of |change|**power when the counted values are rounded to a type with this amax, in the values' unit."""
        used = np.flatnonzero(self.counts)
        if amax == 0.0 or used.size == 0:
            return 0.0
        step = amax / element.largest
        values = np.ldexp(used + 0.5, self.exponent)
        changes = np.abs(element.round(values / step) * step - values)
        return float(np.average(changes**power, weights=self.counts[used]))

    def _reach(self, largest: float) -> None:
        if largest <= self.amax:
            return
        needed = max(math.frexp(largest)[1] - _LOG_BINS, _SMALLEST)
        if self.amax == 0.0:
            self.exponent = needed
        elif needed > self.exponent:
            self._lanes = np.stack([_fold(lane, needed - self.exponent) for lane in self._lanes])
            self.exponent = needed
        self.amax = largest


class _Room(threading.local):
    """What one thread calculates in: new arrays for each block would take longer than the counting."""

    def __init__(self) -> None:
        self._offsets = np.resize(np.arange(_LANES, dtype=np.int32) * BINS, _BLOCK)
        self._magnitudes = np.empty(_BLOCK, np.float32)
        self._bins = np.empty(_BLOCK, np.int32)
        self._counters = np.empty(_BLOCK, np.int64)

    def counters(self, values: npt.NDArray[np.float32], scale: np.float32) -> npt.NDArray[np.int64]:
        """Return the places in all lanes of the values of one block, whose absolute value times the scale is below `BINS`."""
        magnitudes, bins, counters = (
            self._magnitudes[: values.size],
            self._bins[: values.size],
            self._counters[: values.size],
        )
        np.abs(values, out=magnitudes)
        np.multiply(magnitudes, scale, out=magnitudes)
        np.copyto(bins, magnitudes, casting="unsafe")
        np.add(bins, self._offsets[: values.size], out=bins)
        np.copyto(counters, bins)
        return counters


_ROOM = _Room()


def find_least_error_amax(
    weighed: Sequence[tuple[float, Histogram]], element: ElementType
) -> float:
    """Return the amax whose rounding and clipping change the values of several histograms least, in mean square, each with its weight.

    Candidates are edges of the widest bins, up to the type's headroom and down to 1/16 of the largest value of the histogram that
    weighs most, as in pytorch-quantization's MSE calibrator (for FP8 as in Kuzmin et al. 2022, arXiv:2208.09225), first
    some far apart and then all between the best one's neighbours; values stand at their bins' centres.
    """
    held = [(weight, one) for weight, one in weighed if one.amax > 0.0]
    if not held:
        return 0.0
    amax, exponent = max((one.amax, one.exponent) for _, one in held)
    sums = _Sums(*_centres(held, exponent))
    top, first = (
        int(np.ldexp(one, -exponent)) + 1
        for one in (amax, max(held, key=lambda pair: pair[0])[1].amax)
    )
    step, most = max(top // _CANDIDATES, 1), int(top * element.headroom)
    best = sums.least(np.arange(most, first // 16, -step), element.grid())
    best = sums.least(np.arange(min(best + step, most), max(best - step, 0), -1), element.grid())
    return min(amax * element.headroom, math.ldexp(float(best), exponent))


def _centres(held: Sequence[tuple[float, Histogram]], exponent: int) -> tuple[Floats, Floats]:
    """Return the centres of all bins that hold something, ascending, in units of 2**exponent, and the weight of what they hold."""
    used = [np.flatnonzero(one.counts) for _, one in held]
    values = np.concatenate(
        [
            np.ldexp(bins + 0.5, one.exponent - exponent)
            for bins, (_, one) in zip(used, held, strict=True)
        ]
    )
    weights = np.concatenate(
        [weight * one.counts[bins] for bins, (weight, one) in zip(used, held, strict=True)]
    )
    order = np.argsort(values, kind="stable")
    return values[order], weights[order]


class _Sums:
    """Running sums over values in ascending order, from which the error of any grid follows cell by cell."""

    def __init__(self, values: Floats, weights: Floats) -> None:
        self.values = values
        zero = np.zeros(1)
        self.moments = [
            np.concatenate([zero, np.cumsum(weights * values**power)]) for power in range(3)
        ]

    def least(self, candidates: npt.NDArray[np.int64], grid: Floats) -> int:
        """Return the candidate amax, in bins, with the least square error of rounding to the grid and clipping."""
        errors = self._errors(grid * (candidates[:, None] / grid[-1]))
        return int(candidates[int(np.argmin(errors))])

    def _errors(self, grids: Floats) -> Floats:
        """Return for each row of grid values the sum of squares of what rounding to the nearest of them changes."""
        cuts = np.pad(
            np.searchsorted(self.values, (grids[:, :-1] + grids[:, 1:]) / 2), ((0, 0), (1, 1))
        )
        cuts[:, -1] = self.values.size
        counts, sums, squares = (np.diff(moment[cuts], axis=1) for moment in self.moments)
        errors: Floats = np.sum(
            np.maximum(squares - 2 * grids * sums + grids**2 * counts, 0.0), axis=1
        )
        return errors


class _Divergences:
    """Running sums over bins, from which the divergence of the quantized from the clipped distribution follows for any number of bins that is kept."""

    def __init__(self, counts: Floats) -> None:
        self._counts = counts
        self._below = np.concatenate([[0.0], np.cumsum(counts)])
        self._filled = np.concatenate([[0], np.cumsum(counts > 0)])
        self._surprise = np.concatenate([[0.0], np.cumsum(_times_log(counts, counts))])

    def of(self, candidates: npt.NDArray[np.int64], bounds: Floats) -> Floats:
        """Return the divergence for each number of bins that is kept, infinite where what is clipped falls on an empty bin."""
        cuts = np.ceil(bounds * candidates[:, None] - _ROUNDING).astype(np.int64)
        sums, sizes = np.diff(self._below[cuts], axis=1), np.diff(self._filled[cuts], axis=1)
        means = sums / np.maximum(sizes, 1)
        last, kept, total = self._counts[candidates - 1], self._below[candidates], self._below[-1]
        tail = total - kept
        level = means[np.arange(candidates.size), (cuts < candidates[:, None]).sum(axis=1) - 1]
        clipped = self._surprise[candidates - 1] + _times_log(last + tail, last + tail)
        crossed = _times_log(sums, means).sum(axis=1) + _times_log(tail, level)
        with np.errstate(divide="ignore", invalid="ignore"):
            divergences = (clipped - crossed) / total + np.log(kept / total)
        lost = (kept == 0.0) | (
            (last == 0.0) & (tail > 0.0)
        )  # the quantized distribution has nothing there
        return np.where(lost, np.inf, divergences)


def _times_log(weights: Floats, values: Floats) -> Floats:
    """Return weights times the logarithm of values, 0 where a value is 0."""
    result: Floats = weights * np.log(np.where(values > 0, values, 1.0))
    return result


def _fold(counts: npt.NDArray[np.int64], times: int) -> npt.NDArray[np.int64]:
    """Return the counts with each 2**times neighbouring bins joined, padded with empty bins."""
    if times == 0:
        return counts
    folded = np.zeros(BINS, np.int64)
    np.add.at(folded, np.arange(BINS) >> min(times, _LOG_BINS), counts)
    return folded
