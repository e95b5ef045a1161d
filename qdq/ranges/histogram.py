"""Histograms of absolute values that do not depend on the order or the batches of the values.

Bins are a power of two wide. A value beyond the last bin folds neighbouring bins together until it
fits. Since floor(floor(x/w)/2) == floor(x/2w), the result is the histogram that one pass with the
final width would have given. Adding is therefore exact, streaming and mergeable.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qdq.arrays import Array, Floats
from qdq.quantizer import ElementType
from qdq.ranges.divergence import find_least_divergence_edge
from qdq.ranges.square_error import SquareErrorSums

Counts: TypeAlias = npt.NDArray[np.int64]

#: At least half of these are below the largest value, so 2048 are always in use.
BINS = 4096
_LOG_BINS = 12

#: The number of candidates of the first, coarse search for the least square error.
_CANDIDATES = 256

#: Bins never get narrower than 2**-120, so that dividing by the width stays within float32.
_LEAST_EXPONENT = -120

#: The head of the bytes: exponent, amax and the bytes of each count.
_HEAD = "<idB"

#: The numbers of bytes that a count may have.
_COUNT_BYTES = (1, 2, 4, 8)

#: The number of values that are counted at a time, few enough to stay in a core's cache.
_BLOCK = 1 << 17

#: The values from which `numpy.bincount` takes less time, though it makes an array of all counters.
_MANY = 1 << 14

#: The number of counters of each bin.
_LANES = 2
_INCREMENT = np.int64(1)


class Histogram:
    """Counts of absolute values in `BINS` bins of equal width, and the largest value."""

    def __init__(self) -> None:
        #: Several counters for each bin, which neighbouring values take in turn: a core waits where
        #: the same counter is incremented twice in a row, as for the zeros after a Relu.
        self._lanes: Counts = np.zeros((_LANES, BINS), np.int64)
        #: log2 of the bin width; meaningless while `amax` is 0.
        self.exponent = 0
        self.amax = 0.0

    @property
    def counts(self) -> Counts:
        """The number of values in each bin."""
        counts: Counts = self._lanes.sum(axis=0)
        return counts

    def add(self, values: Array, largest: float | None = None) -> None:
        """Count the absolute values of finite values.

        `largest` is the largest of these absolute values, where the caller knows it.
        """
        flat = values.ravel().astype(np.float32, copy=False)
        if largest is None:
            largest = max(values.max(initial=0.0), -values.min(initial=0.0))
        self._extend(float(np.float32(largest)))
        if self.amax == 0.0:
            self._lanes[0, 0] += flat.size
            return
        scale = np.float32(math.ldexp(1.0, -self.exponent))
        counters = self._lanes.reshape(-1)
        scratch = _find_scratch()
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            positions = scratch.find_counters(block, scale)
            if block.size < _MANY:
                np.add.at(counters, positions, _INCREMENT)
            else:
                counters += np.bincount(positions, minlength=counters.size)

    def merged(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of this histogram and another one."""
        total = Histogram()
        total._extend(max(self.amax, other.amax))
        for histogram in (self, other):
            counts = histogram.counts
            if histogram.amax > 0.0:
                counts = _fold(counts, total.exponent - histogram.exponent)
            total._lanes[0] += counts
        return total

    def to_bytes(self) -> bytes:
        """Return the histogram in the form that `from_bytes` reads, the same on every machine.

        Bins after the last that is not empty are left out.
        """
        counts = self.counts
        used = np.flatnonzero(counts)
        end = used[-1] + 1 if used.size else 0
        counts = counts[:end]
        width = _count_bytes(int(counts.max(initial=0)))
        head = struct.pack(_HEAD, self.exponent, self.amax, width)
        return head + counts.astype(f"<i{width}").tobytes()

    @classmethod
    def from_counts(cls, counts: Counts, exponent: int, amax: float) -> Histogram:
        """Return the histogram of counts [BINS] that were made elsewhere."""
        histogram = cls()
        histogram._lanes[0] = counts
        histogram.exponent, histogram.amax = exponent, amax
        return histogram

    @classmethod
    def from_bytes(cls, content: bytes) -> Histogram:
        """Return the histogram that `to_bytes` wrote; raises ValueError for anything else."""
        head = struct.calcsize(_HEAD)
        if len(content) < head or content[head - 1] not in _COUNT_BYTES:
            raise ValueError("a histogram is cut short")
        histogram = cls()
        histogram.exponent, histogram.amax, width = struct.unpack(_HEAD, content[:head])
        counts = np.frombuffer(content[head:], f"<i{width}")
        histogram._lanes[0, : counts.size] = counts
        return histogram

    def percentile(self, percent: float) -> float:
        """Return the smallest bin edge with at least `percent` of the values below it.

        It is never above the largest value.
        """
        cumulative = np.cumsum(self.counts)
        total = int(cumulative[-1])
        share = Fraction(str(percent)) / 100  # of the decimal number that was written
        required = math.ceil(total * share)
        edge = int(np.searchsorted(cumulative, required)) + 1
        return min(self.amax, math.ldexp(float(edge), self.exponent))

    def least_error(self, element: ElementType) -> float:
        """Return the amax with the least mean square error of rounding and clipping the values.

        See `find_least_error_amax`.
        """
        return find_least_error_amax([(1.0, self)], element)

    def least_divergence(self, element: ElementType) -> float:
        """Return the amax with the least divergence of the quantized from the clipped distribution.

        The algorithm is the entropy calibrator of TensorRT (Migacz, 8-bit Inference with TensorRT,
        GTC 2017) in the form of pytorch-quantization. From bin 128 on every bin edge is a
        candidate. Values beyond it are added to its last bin. Bins are joined into one level for
        each value of the type and spread evenly again over those that are not empty. The lowest bin
        takes the count of its neighbour. Of equal candidates the largest counts.
        """
        counts = self.counts
        used = np.flatnonzero(counts)
        if self.amax == 0.0 or used.size == 0:
            return self.amax
        top = used[-1] + 1
        kept_counts = counts[:top].astype(np.float64)
        kept_counts[0] = kept_counts[min(1, top - 1)]
        edge = find_least_divergence_edge(kept_counts, element.bounds())
        return min(self.amax, math.ldexp(float(edge), self.exponent))

    def error(self, amax: float, element: ElementType, power: float = 2.0) -> float:
        """Return the mean of |change|**power of rounding the values to a type with this amax.

        It is in the values' unit to that power.
        """
        counts = self.counts
        used = np.flatnonzero(counts)
        if amax == 0.0 or used.size == 0:
            return 0.0
        step = amax / element.largest
        centres = np.ldexp(used + 0.5, self.exponent)
        rounded = element.round(centres / step) * step
        changes = np.abs(rounded - centres)
        mean = np.average(changes**power, weights=counts[used])
        return float(mean)

    def mean_square(self) -> float:
        """Return the mean square of the values, in the square of their unit; 0 for none."""
        counts = self.counts
        used = np.flatnonzero(counts)
        if used.size == 0:
            return 0.0
        centres = np.ldexp(used + 0.5, self.exponent)
        return float(np.average(centres**2, weights=counts[used]))

    def _extend(self, largest: float) -> None:
        """Widen the bins until a value fits."""
        if largest <= self.amax:
            return
        _, largest_exponent = math.frexp(largest)
        exponent = max(largest_exponent - _LOG_BINS, _LEAST_EXPONENT)
        if self.amax == 0.0:
            self.exponent = exponent
        elif exponent > self.exponent:
            doublings = exponent - self.exponent
            self._lanes = np.stack([_fold(lane, doublings) for lane in self._lanes])
            self.exponent = exponent
        self.amax = largest


class _Scratch:
    """Arrays that one thread calculates in: to allocate them for each block costs too much."""

    def __init__(self) -> None:
        self._offsets = np.resize(np.arange(_LANES, dtype=np.int32) * BINS, _BLOCK)
        self._magnitudes = np.empty(_BLOCK, np.float32)
        self._bins = np.empty(_BLOCK, np.int32)
        self._counters = np.empty(_BLOCK, np.int64)

    def find_counters(self, values: npt.NDArray[np.float32], scale: np.float32) -> Counts:
        """Return the position of the counter of each value of one block, in all lanes.

        The absolute values times the scale must be below `BINS`.
        """
        size = values.size
        magnitudes = self._magnitudes[:size]
        bins = self._bins[:size]
        counters = self._counters[:size]
        offsets = self._offsets[:size]
        np.abs(values, out=magnitudes)
        np.multiply(magnitudes, scale, out=magnitudes)
        np.copyto(bins, magnitudes, casting="unsafe")
        np.add(bins, offsets, out=bins)
        np.copyto(counters, bins)
        return counters


_THREAD = threading.local()


def _find_scratch() -> _Scratch:
    """Return the arrays of this thread, which are made when they are first used."""
    scratch: _Scratch | None = getattr(_THREAD, "scratch", None)
    if scratch is None:
        scratch = _THREAD.scratch = _Scratch()
    return scratch


def find_least_error_amax(
    weighed: Sequence[tuple[float, Histogram]], element: ElementType
) -> float:
    """Return the amax with the least mean square error of rounding and clipping several histograms.

    Each histogram comes with the weight of its values, which are at the centres of their bins.
    Candidates are edges of the widest bins, up to the type's headroom and down to 1/16 of the
    largest value of the histogram with the largest weight, as in pytorch-quantization's MSE
    calibrator (for FP8 as in Kuzmin et al. 2022, arXiv:2208.09225). The first search takes
    candidates that are far apart, the second one all between the neighbours of the best.
    """
    filled = [(weight, histogram) for weight, histogram in weighed if histogram.amax > 0.0]
    if not filled:
        return 0.0
    amax, exponent = max((histogram.amax, histogram.exponent) for _, histogram in filled)
    _, heaviest = max(filled, key=lambda pair: pair[0])
    sums = SquareErrorSums(*_weigh_centres(filled, exponent))
    top = int(np.ldexp(amax, -exponent)) + 1
    heaviest_top = int(np.ldexp(heaviest.amax, -exponent)) + 1
    most = int(top * element.headroom)
    least = heaviest_top // 16
    step = max(top // _CANDIDATES, 1)
    best = _search_edges(sums, element.grid(), range(most, least, -step))
    return min(amax * element.headroom, math.ldexp(float(best), exponent))


def _search_edges(sums: SquareErrorSums, grid: Floats, coarse: range) -> int:
    """Return the best of some edges, or an edge between its neighbours that is better."""
    best = sums.find_least_error(np.arange(coarse.start, coarse.stop, coarse.step), grid)
    step = -coarse.step
    upper = min(best + step, coarse.start)
    lower = max(best - step, 0)
    return sums.find_least_error(np.arange(upper, lower, -1), grid)


def _weigh_centres(
    weighed: Sequence[tuple[float, Histogram]], exponent: int
) -> tuple[Floats, Floats]:
    """Return the centres of all bins that are not empty, ascending, and the weight of each.

    Centres are in units of 2**exponent. The weight of a bin is its count times its histogram's.
    """
    centres: list[Array] = []
    weights: list[Array] = []
    for weight, histogram in weighed:
        counts = histogram.counts
        used = np.flatnonzero(counts)
        centres.append(np.ldexp(used + 0.5, histogram.exponent - exponent))
        weights.append(weight * counts[used])
    all_centres = np.concatenate(centres)
    order = np.argsort(all_centres, kind="stable")
    return all_centres[order], np.concatenate(weights)[order]


def _count_bytes(largest: int) -> int:
    """Return the least number of bytes that holds the largest count."""
    for width in _COUNT_BYTES:
        if largest >> (8 * width - 1) == 0:
            return width
    raise OverflowError(f"a count of {largest} needs more than 8 bytes")


def _fold(counts: Counts, doublings: int) -> Counts:
    """Return the counts with each 2**doublings neighbouring bins joined, padded with empty bins."""
    if doublings == 0:
        return counts
    folded = np.zeros(BINS, np.int64)
    folded_bins = np.arange(BINS) >> min(doublings, _LOG_BINS)
    np.add.at(folded, folded_bins, counts)
    return folded
