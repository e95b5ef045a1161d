"""Totals of one tensor over samples: largest magnitudes, counts, and exact sums of channels.

The library adds a sample in one call. Its arrays are numpy's, and nothing else is kept in C.
"""

from __future__ import annotations

import ctypes
import math
import threading
from enum import IntFlag
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qdq.arrays import Array
from qdq.compiled.library import Library, address

#: As in `compiled.c`.
BINS = 4096
_MOST_GRADES = 64

_Exact = npt.NDArray[np.int64]


class Outcome(IntFlag):
    """What prevented the library from adding a sample, or a part of it; 0 for nothing."""

    #: A value is NaN or Inf: nothing was added.
    NOT_FINITE = 1
    #: A sum of a channel or of its squares is not finite: no sum was added.
    SUMS_NOT_FINITE = 2


class Layout(NamedTuple):
    """How values lie in memory: [outer, channels, inner], or the last two swapped."""

    outer: int
    channels: int
    inner: int
    is_transposed: bool


class TensorTotals:
    """The totals of one tensor, for each grade of its channels."""

    def __init__(
        self,
        library: Library,
        grades: int,
        grade_of_channel: npt.NDArray[np.int32] | None,
        is_counting: bool,
    ) -> None:
        """`is_counting` asks for counts of bins, which take 32 KiB a grade."""
        self._library = library
        self._grade_of_channel = grade_of_channel
        self._grades_address = address(grade_of_channel)
        #: The number of values in each bin [grades, BINS].
        self.counts = np.zeros((grades, BINS), np.int64) if is_counting else None
        #: log2 of the bin width of each grade; meaningless where `largest` is 0.
        self.exponents = np.zeros(grades, np.int32)
        #: The largest magnitude of each grade.
        self.largest = np.zeros(grades, np.float32)
        self._workspace_size = grades * library.size_of_workspace
        self._struct = _Totals(
            address(self.counts), address(self.exponents), address(self.largest), grades, None, None
        )
        self._moments: tuple[_Exact, ...] = ()

    @property
    def has_moments(self) -> bool:
        """Whether `add` can sum channels."""
        return bool(self._moments)

    def add_moments_to(self, sums: _Exact, squares: _Exact) -> None:
        """Name the exact sums [limbs, channels] that `add` adds those of channels to."""
        self._moments = (sums, squares)  # the structure holds addresses only
        self._struct.sums, self._struct.squares = address(sums), address(squares)

    def add(
        self,
        values: Array,
        layout: Layout,
        has_grades: bool,
        is_summing: bool,
    ) -> Outcome:
        """Add one sample, float32 in C order.

        Without grades all of its channels are of the first one.
        """
        outer, channels, inner, is_transposed = layout
        rows = outer * channels if is_summing else 0
        workspaces, sums = _SCRATCH.find_arrays(self._workspace_size, rows)
        outcome: int = self._library.add_tensor(
            ctypes.byref(self._struct),
            address(values),
            outer,
            channels,
            inner,
            is_transposed,
            self._grades_address if has_grades else None,
            workspaces,
            sums,
            self._library.has_avx2,
        )
        return Outcome(outcome)


class _Totals(ctypes.Structure):
    """The totals as `compiled.c` has them."""

    _fields_ = (
        ("counts", ctypes.c_void_p),
        ("exponents", ctypes.c_void_p),
        ("largest", ctypes.c_void_p),
        ("grade_count", ctypes.c_int64),
        ("sums", ctypes.c_void_p),
        ("squares", ctypes.c_void_p),
    )


class _Scratch(threading.local):
    """Arrays that one thread calculates in: to allocate them for each tensor costs too much."""

    def __init__(self) -> None:
        self._workspaces = np.empty(0, np.uint8)
        self._sums = np.empty(0, np.float32)
        self._addresses = (0, 0)

    def find_arrays(self, workspace_size: int, rows: int) -> tuple[int, int | None]:
        """Return the addresses of workspaces, and of two sums a row or None without rows.

        `workspace_size` is the bytes of all workspaces; the library finds and leaves zeros there.
        """
        if self._workspaces.size < workspace_size or self._sums.size < 2 * rows:
            self._workspaces = np.zeros(max(workspace_size, self._workspaces.size), np.uint8)
            self._sums = np.empty(max(2 * rows, self._sums.size), np.float32)
            self._addresses = (self._workspaces.ctypes.data, self._sums.ctypes.data)
        return self._addresses[0], self._addresses[1] if rows else None


_SCRATCH = _Scratch()


def can_add(values: Array, grades: int = 1) -> bool:
    """Whether the library adds values of this type, of as many grades."""
    is_narrow = values.dtype.kind == "f" and values.dtype.itemsize <= np.dtype(np.float32).itemsize
    return is_narrow and values.size > 0 and grades <= _MOST_GRADES


def is_last_axis(values: Array, axis: int) -> bool:
    """Whether channels are columns: one follows the other in memory, and not in axis 1."""
    return axis == values.ndim - 1 and axis > 1 and values.shape[axis] > 1


def arrange_channels(values: Array, axis: int | None) -> tuple[Array, Layout]:
    """Return float32 values in C order, and where the channels of an axis are in them.

    `outer` is the first axis but the channels'. Without an axis all values are of one channel.
    """
    size = values.size
    if axis is None:
        layout = Layout(1, 1, size, False)
    elif values.ndim <= 1:
        layout = Layout(1, size, 1, False)
    else:
        axis = range(values.ndim)[axis]
        channels = values.shape[axis]
        if is_last_axis(values, axis):
            outer = len(values)
            layout = Layout(outer, channels, size // (outer * channels), True)
        else:
            values = values if axis == 1 else np.moveaxis(values, axis, 1)
            layout = Layout(len(values), channels, math.prod(values.shape[2:]), False)
    flags = values.flags
    if values.dtype != np.float32 or not (flags.c_contiguous and flags.aligned):
        values = np.require(values, np.float32, ("C", "A"))
    return values, layout
