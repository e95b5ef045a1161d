"""Statistics of one tensor: its largest value, counts and channel sums, added sample by sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

import msgspec
import numpy as np
import numpy.typing as npt

from qdq.arrays import Array
from qdq.compiled.library import Library, find_library
from qdq.compiled.tensor_totals import (
    Outcome,
    TensorTotals,
    arrange_channels,
    can_add,
    is_last_axis,
)
from qdq.errors import DataError, ModelError
from qdq.ordered_sums import sum_rows
from qdq.ranges.channel_importance import ChannelGrades
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import Histogram
from qdq.ranges.tensor_ranges import Moments, TensorRange

#: The number of values that are squared at a time, few enough for the cache and for memory.
_BLOCK = 1 << 18

#: A tensor: the path of the graph that produces it, and its name.
TensorKey = tuple[str, str]


@dataclass(frozen=True)
class ObservedTensor:
    """A tensor that is observed, and which of its statistics."""

    #: Its name as `Edge.read` gives it.
    read: str
    source: TensorKey
    histogram: bool
    #: The axis of the channels that are summed, None where no moments are required.
    axis: int | None
    #: The importance of its channels, where they differ in it.
    grades: ChannelGrades | None


class SampleStatistics(msgspec.Struct, frozen=True):
    """The statistics of one tensor in one sample; threads measure several samples at a time."""

    #: The number of values.
    size: int
    #: The largest absolute value; NaN where the tensor holds one.
    largest: float
    #: The values to count and the largest absolute value, for each grade. All values are of one
    #: grade where channels are not known.
    parts: tuple[tuple[int, Array, float], ...]
    #: The sums of its channels and those of their squares, float32 [2, entries, channels], where
    #: moments are required.
    sums: Array | None


#: A sample that the compiled library refused to add.
_NOT_FINITE = SampleStatistics(0, math.nan, (), None)


class TensorStatistics:
    """The statistics of one tensor over all samples so far."""

    def __init__(self, observed: ObservedTensor, is_flat: bool) -> None:
        """`is_flat` states that values come as vectors, so that their channels are not known."""
        self._tensor = observed.source[1]
        self._axis = None if is_flat else observed.axis
        self._grades: ChannelGrades | None = None
        #: The grades that are counted.
        self._used_grades: tuple[int, ...] = ()
        self._histograms: dict[int, Histogram] = {}
        #: The positions of the channels of each grade.
        self._channels: dict[int, npt.NDArray[np.intp]] = {}
        #: The position of each channel's grade in `_used_grades`.
        self._grade_positions: npt.NDArray[np.int32] | None = None
        if observed.histogram:
            self._prepare_grades(None if is_flat else observed.grades)
        #: What the compiled library has added, and the lock of these totals.
        self._totals: TensorTotals | None = None
        self._lock = Lock()
        self._seen = False
        self._filled = False
        self._amax = 0.0
        self._count = 0
        self._sums: ExactSum | None = None
        self._squares: ExactSum | None = None
        self._moments_lost = False

    def _prepare_grades(self, grades: ChannelGrades | None) -> None:
        """Find the grades of channels, for a histogram of each, or one of all."""
        self._grades = grades
        if grades is None:
            self._used_grades = (0,)
            return
        of_channel = np.array(grades.of_channel)
        used_grades, positions = np.unique(of_channel, return_inverse=True)
        self._grade_positions = positions.astype(np.int32)
        self._used_grades = tuple(map(int, used_grades))
        for grade in self._used_grades:
            self._channels[grade] = np.flatnonzero(of_channel == grade)

    def measure(self, values: Array) -> SampleStatistics | None:
        """Return the statistics of one sample's values, which `add` takes; None where they are in.

        Several threads may measure at a time. The compiled library adds what it measures at once:
        the order of samples does not change a total. Raises ModelError unless values are float.
        """
        if values.dtype.kind != "f":
            raise ModelError(
                f"tensor {self._tensor!r} holds {values.dtype} and cannot be quantized. "
                "Fix the rule that selects it."
            )
        library = find_library()
        if library is not None and can_add(values, len(self._used_grades)):
            with self._lock:
                return self._add_to_totals(library, values)
        sums = None
        if self._axis is not None and values.size:
            sums = _sum_channels(values, self._axis)
        if self._grades is not None and _has_channels(values, self._grades):
            return self._measure_grades(values, self._grades.axis, sums)
        largest = _find_largest(values)
        parts = tuple((grade, values, largest) for grade in self._used_grades[:1])
        return SampleStatistics(values.size, largest, parts, sums)

    def _add_to_totals(self, library: Library, values: Array) -> SampleStatistics | None:
        """Add one sample by the compiled library; return it where a value is not finite."""
        has_grades = self._grades is not None and _has_channels(values, self._grades)
        axis = self._axis
        if has_grades and self._grades is not None:
            axis = self._grades.axis
        is_same_axis = self._axis is not None and _same_axis(values, self._axis, axis)
        arranged, layout = arrange_channels(values, axis)
        totals = self._find_totals(library)
        is_summing = is_same_axis and self._open_moments(totals, layout.channels)
        outcome = totals.add(arranged, layout, has_grades, is_summing)
        if outcome & Outcome.NOT_FINITE:
            return _NOT_FINITE
        self._seen = self._filled = True
        if outcome & Outcome.SUMS_NOT_FINITE:
            self._moments_lost = True
        elif is_summing:
            self._count += values.size // layout.channels
        elif self._axis is not None and not is_same_axis:
            self._add_moments(values.size, _sum_channels(values, self._axis))
        return None

    def _find_totals(self, library: Library) -> TensorTotals:
        if self._totals is None:
            grades = max(len(self._used_grades), 1)
            is_counting = bool(self._used_grades)
            self._totals = TensorTotals(library, grades, self._grade_positions, is_counting)
        return self._totals

    def _open_moments(self, totals: TensorTotals, channels: int) -> bool:
        """Whether the sums of some channels can be added to the totals."""
        if self._sums is None or self._squares is None:
            self._sums = ExactSum(channels)
            self._squares = ExactSum(channels)
        if self._sums.size != channels:
            self._moments_lost = True
            return False
        if not totals.has_moments:
            totals.add_moments_to(self._sums.limbs, self._squares.limbs)
        return True

    def _measure_grades(self, values: Array, axis: int, sums: Array | None) -> SampleStatistics:
        """Return the statistics of one sample's values with a part for each grade."""
        by_channel = _find_largest_by_channel(values, axis)
        parts: list[tuple[int, Array, float]] = []
        for grade, channels in self._channels.items():
            part = values.take(channels, axis)
            part_largest = float(by_channel[channels].max())
            parts.append((grade, part, part_largest))
        largest = float(by_channel.max(initial=0.0))
        return SampleStatistics(values.size, largest, tuple(parts), sums)

    def add(self, sample: SampleStatistics, name: str) -> None:
        """Add one sample; raises DataError, with the sample's name, where it holds NaN or Inf."""
        if not np.isfinite(sample.largest):
            raise DataError(
                f"{name}: tensor {self._tensor!r} becomes NaN or Inf. "
                "Fix the data or keep the tensor's readers in float."
            )
        self._seen = True
        self._filled = self._filled or sample.size > 0
        self._amax = max(self._amax, sample.largest)
        for grade, values, largest in sample.parts:
            if grade not in self._histograms:
                self._histograms[grade] = Histogram()
            self._histograms[grade].add(values, largest)
        if sample.sums is not None:
            self._add_moments(sample.size, sample.sums)

    def _add_moments(self, size: int, sums: Array) -> None:
        channels = sums.shape[2]
        if self._sums is None or self._squares is None:
            self._sums = ExactSum(channels)
            self._squares = ExactSum(channels)
        if self._sums.size != channels or not np.isfinite(sums).all():
            self._moments_lost = True
            return
        self._count += size // channels
        self._sums.add(sums[0])
        self._squares.add(sums[1])

    def to_range(self, read: str) -> TensorRange:
        """Return the statistics so far, under the name that edges read the tensor by.

        No thread may measure the tensor meanwhile.
        """
        histograms = dict(self._join_histograms())
        histogram = functools.reduce(Histogram.merged, histograms.values()) if histograms else None
        largest = self._amax
        if self._totals is not None:
            largest = max(largest, float(self._totals.largest.max()))
        return TensorRange(
            tensor=read,
            amax=largest,
            histogram=histogram,
            moments=self._join_moments(),
            seen=self._seen,
            moments_lost=self._moments_lost,
            by_grade=tuple(histograms.items()) if self._grades else (),
            filled=self._filled,
        )

    def _join_histograms(self) -> Iterator[tuple[int, Histogram]]:
        """Yield each grade with the histogram of all its values."""
        totals = self._totals
        for position, grade in enumerate(self._used_grades):
            histogram = self._histograms.get(grade) or Histogram()
            if totals is not None and totals.counts is not None:
                exponent = int(totals.exponents[position])
                amax = float(totals.largest[position])
                counted = Histogram.from_counts(totals.counts[position], exponent, amax)
                histogram = histogram.merged(counted)
            yield grade, histogram

    def _join_moments(self) -> Moments | None:
        if self._sums is None or self._squares is None or self._moments_lost:
            return None
        return Moments(self._count, self._sums, self._squares)


def _find_largest(values: Array) -> float:
    """Return the largest absolute value, 0 for no values, NaN where there is one."""
    return float(max(values.max(initial=0), -values.min(initial=0)))


def _sum_channels(values: Array, axis: int) -> Array:
    """Return the sums of values and of their squares along a channel axis.

    They are float32 [2, entries, channels], entries being those of axis 0. The sums of an entry do
    not depend on the other entries.
    """
    values = values.astype(np.float32, copy=False)
    axis = axis % max(values.ndim, 1)
    if is_last_axis(values, axis):
        columns = values.reshape(len(values), -1, values.shape[axis])
        return _sum_columns(np.ascontiguousarray(columns))
    channels = np.moveaxis(values, axis, 1) if values.ndim > 1 else values.reshape(1, -1)
    rows = channels.reshape(*channels.shape[:2], -1)
    return _sum_with_squares(np.ascontiguousarray(rows))


def _sum_with_squares(values: Array) -> Array:
    """Return the sums of rows [entries, channels, width] and those of their squares."""
    channels = values.shape[1]
    result = np.empty((2, *values.shape[:2]), np.float32)
    height = max(_BLOCK // values.shape[2], 1)
    with np.errstate(over="ignore", invalid="ignore"):
        result[0] = sum_rows(values)
        for first in range(0, channels, height):
            block = slice(first, first + height)
            result[1, :, block] = sum_rows(np.square(values[:, block]))
    return result


def _sum_columns(values: Array) -> Array:
    """Return the sums of columns [entries, height, channels] and those of their squares.

    numpy adds one row of an array in C order after the other, as the compiled part does.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.stack([values.sum(axis=1), np.square(values).sum(axis=1)])


def _has_channels(values: Array, grades: ChannelGrades) -> bool:
    """Whether values have as many channels as there are grades, along the same axis."""
    if values.ndim <= grades.axis:
        return False
    channels: int = values.shape[grades.axis]
    return channels == len(grades.of_channel)


def _same_axis(values: Array, axis: int, other: int | None) -> bool:
    """Whether two axes of values are the same; a vector has only channels."""
    if values.ndim <= 1:
        return True
    return other is not None and axis % values.ndim == other % values.ndim


def _find_largest_by_channel(values: Array, axis: int) -> Array:
    """Return the largest absolute value of each channel."""
    other_axes = tuple(other for other in range(values.ndim) if other != axis)
    highest = values.max(axis=other_axes, initial=0)
    lowest = values.min(axis=other_axes, initial=0)
    largest: Array = np.maximum(highest, -lowest)
    return largest
