"""Measuring a tensor in one pass: its largest magnitudes, counts, and sums of channels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from qdq.arrays import Array
from qdq.compiled.library import Library, address

#: As in `compiled.c`.
BINS = 4096
_COUNTERS = 4
_MOST_GRADES = 64

#: A count has 32 bits.
_MOST_VALUES = (1 << 32) - 1

#: The memory layout that the library reads.
_PLAIN: tuple[Literal["C", "A"], ...] = ("C", "A")

_Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BinCounts:
    """The counts of some values in bins of the least width that fits the largest of them."""

    counts: npt.NDArray[np.uint32]
    #: log2 of the bin width; meaningless where `largest` is 0.
    exponent: int
    largest: float


@dataclass(frozen=True)
class Measurement:
    """The results of one tensor."""

    #: The largest magnitude of each grade, not finite where a value of it is not.
    largest: _Float32s
    #: log2 of the bin width of each grade.
    exponents: npt.NDArray[np.int32]
    #: The count of each bin [grades, BINS], None where nothing is counted.
    counts: npt.NDArray[np.uint32] | None
    #: The sums of the channels and those of their squares [2, outer, channels].
    sums: _Float32s | None

    def addresses(self) -> tuple[int | None, ...]:
        """Return the addresses of the arrays, null where there is none."""
        return tuple(map(address, (self.largest, self.exponents, self.counts, self.sums)))

    def split_counts(self) -> Iterator[BinCounts]:
        """Yield the counts of each grade, or nothing where nothing was counted."""
        if self.counts is None:
            return
        for i, counts in enumerate(self.counts):
            yield BinCounts(counts, int(self.exponents[i]), float(self.largest[i]))


class _Scratch(threading.local):
    """Arrays that one thread calculates in: to allocate them for each tensor costs too much."""

    def __init__(self) -> None:
        self._counters = np.empty(0, np.uint32)
        self._address = 0

    def find_counters(self, grades: int) -> int:
        """Return the address of counters of some grades, with any content."""
        size = grades * _COUNTERS * BINS
        if self._counters.size < size:
            self._counters = np.empty(size, np.uint32)
            self._address = self._counters.ctypes.data
        return self._address


_SCRATCH = _Scratch()


def can_measure(values: Array, grades: int = 1) -> bool:
    """Whether the library measures values of this type and number."""
    is_narrow = values.dtype.kind == "f" and values.dtype.itemsize <= np.dtype(np.float32).itemsize
    return is_narrow and 0 < values.size <= _MOST_VALUES and grades <= _MOST_GRADES


def measure_tensor(
    library: Library,
    values: Array,
    axis: int | None,
    grade_of_channel: npt.NDArray[np.int32] | None = None,
    *,
    is_counting: bool = True,
    is_summing: bool = True,
) -> Measurement:
    """Return the measurement of values that `can_measure` accepts, in any memory layout.

    Without an axis of channels, all values are of one channel.
    """
    tensor, is_transposed = _arrange_channels(values, axis)
    outer, middle, last = tensor.shape
    channels, inner = (last, middle) if is_transposed else (middle, last)
    grades = 1 if grade_of_channel is None else int(grade_of_channel.max()) + 1
    counts = np.empty((grades, BINS), np.uint32) if is_counting else None
    sums = np.empty((2, outer, channels), np.float32) if is_summing else None
    measurement = Measurement(
        np.empty(grades, np.float32), np.empty(grades, np.int32), counts, sums
    )
    library.measure_tensor(
        address(tensor),
        outer,
        channels,
        inner,
        is_transposed,
        address(grade_of_channel),
        grades,
        *measurement.addresses(),
        _SCRATCH.find_counters(grades),
        library.has_avx2,
    )
    return measurement


def is_last_axis(values: Array, axis: int) -> bool:
    """Whether channels are columns: one follows the other in memory, and not in axis 1."""
    return axis == values.ndim - 1 and axis > 1 and values.shape[axis] > 1


def _arrange_channels(values: Array, axis: int | None) -> tuple[Array, bool]:
    """Return float32 values as [outer, channels, inner], or the last two swapped, and which it is.

    `outer` is the first axis but the channels'.
    """
    if axis is None:
        channels = values.reshape(1, 1, -1)
    elif values.ndim <= 1:
        channels = values.reshape(1, -1, 1)
    else:
        axis = range(values.ndim)[axis]
        if is_last_axis(values, axis):
            channels = values.reshape(len(values), -1, values.shape[axis])
            return np.require(channels, np.float32, _PLAIN), True
        moved = values if axis == 1 else np.moveaxis(values, axis, 1)
        channels = moved.reshape(*moved.shape[:2], -1)
    return np.require(channels, np.float32, _PLAIN), False


def add_counts(
    library: Library, totals: npt.NDArray[np.int64], counts: Array, doublings: int
) -> None:
    """Add the counts of one grade to totals whose bins are 2**doublings as wide."""
    library.add_counts(address(totals), address(counts), doublings)
