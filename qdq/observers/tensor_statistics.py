"""What one tensor holds: its largest values, counts and channel sums, sample by sample."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import msgspec
import numpy as np

from qdq.arrays import Array
from qdq.errors import DataError, ModelError
from qdq.ranges.channel_importance import ChannelGrades
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import Histogram
from qdq.ranges.tensor_ranges import Moments, TensorRange

#: A tensor: the path of the graph that makes it, and its name.
TensorKey = tuple[str, str]


@dataclass(frozen=True)
class ObservedTensor:
    """A tensor that is observed, and what of it."""

    #: Its name as `Edge.read` gives it.
    read: str
    source: TensorKey
    histogram: bool
    #: The axis whose channels are summed, where its moments are wanted.
    axis: int | None
    #: How much its channels matter, where that differs.
    grades: ChannelGrades | None


class SampleStatistics(msgspec.Struct, frozen=True):
    """One tensor of one sample, with all that can be said of it before others are known: threads look at several at once."""

    #: How many values there are.
    size: int
    #: The largest absolute value; NaN where it holds one.
    largest: float
    #: What is counted: the values and the largest absolute one of them for each grade, all for one grade where channels are not known.
    parts: tuple[tuple[int, Array, float], ...]
    #: What its channels sum up to, and their squares, where moments are wanted.
    sums: tuple[Array, Array] | None


class TensorStatistics:
    """What one tensor has held so far."""

    def __init__(self, wanted: ObservedTensor, flat: bool) -> None:
        """`flat` tells that the tensor comes as a vector, so that its channels are not known."""
        self.tensor = wanted.source[1]
        self.axis = None if flat else wanted.axis
        self.grades = None if flat or not wanted.histogram else wanted.grades
        grades = sorted(set(self.grades.of_channel)) if self.grades else [0]
        self.histograms = {grade: Histogram() for grade in grades} if wanted.histogram else {}
        self.channels = (
            {grade: np.flatnonzero(np.array(self.grades.of_channel) == grade) for grade in grades}
            if self.grades
            else {}
        )
        self.seen = False
        self.amax = 0.0
        self.count = 0
        self.sums: ExactSum | None = None
        self.squares: ExactSum | None = None
        self.lost = False

    def measure(self, values: Array) -> SampleStatistics:
        """Return what one sample's values say on their own; raises ModelError where they are no floats."""
        if values.dtype.kind != "f":
            raise ModelError(
                f"tensor {self.tensor!r} holds {values.dtype} and cannot be quantized; narrow the rule that asks for it"
            )
        sums = channel_sums(values, self.axis) if self.axis is not None and values.size else None
        grades = self.grades
        if (
            grades is None
            or values.ndim <= grades.axis
            or values.shape[grades.axis] != len(grades.of_channel)
        ):
            largest = largest_magnitude(values)
            return SampleStatistics(
                values.size,
                largest,
                tuple((grade, values, largest) for grade in list(self.histograms)[:1]),
                sums,
            )
        channels = _largest_of_channels(values, grades.axis)
        parts = (
            (grade, values.take(of, grades.axis), float(channels[of].max()))
            for grade, of in self.channels.items()
        )
        return SampleStatistics(values.size, float(channels.max(initial=0.0)), tuple(parts), sums)

    def add(self, look: SampleStatistics, where: str) -> None:
        """Count one sample in; raises DataError where it holds NaN or Inf."""
        if not np.isfinite(look.largest):
            raise DataError(
                f"{where}: tensor {self.tensor!r} becomes NaN or Inf; mend the data or leave its readers in float"
            )
        self.seen, self.amax = True, max(self.amax, look.largest)
        for grade, values, largest in look.parts:
            self.histograms[grade].add(values, largest)
        if look.sums is not None:
            self._add_moments(look.size, *look.sums)

    def _add_moments(self, size: int, sums: Array, squares: Array) -> None:
        if self.sums is None or self.squares is None:
            self.sums, self.squares = ExactSum(sums.shape[1]), ExactSum(sums.shape[1])
        alike = self.sums.size == sums.shape[1]
        if not (alike and np.isfinite(sums).all() and np.isfinite(squares).all()):
            self.lost = True
            return
        self.count += size // sums.shape[1]
        self.sums.add(sums)
        self.squares.add(squares)

    def to_range(self, read: str) -> TensorRange:
        """Return what the tensor has held so far, under the name that edges read it by."""
        whole = (
            functools.reduce(Histogram.merged, self.histograms.values())
            if self.histograms
            else None
        )
        return TensorRange(
            read,
            self.amax,
            whole,
            self._moments(),
            self.seen,
            self.lost,
            tuple(self.histograms.items()) if self.grades else (),
        )

    def _moments(self) -> Moments | None:
        if self.sums is None or self.squares is None or self.lost:
            return None
        return Moments(self.count, self.sums, self.squares)


def largest_magnitude(values: Array) -> float:
    """Return the largest absolute value, 0 for none, NaN where there is one."""
    return float(max(values.max(initial=0), -values.min(initial=0)))


def _largest_of_channels(values: Array, axis: int) -> Array:
    others = tuple(a for a in range(values.ndim) if a != axis)
    largest: Array = np.maximum(
        values.max(axis=others, initial=0), -values.min(axis=others, initial=0)
    )
    return largest


def channel_sums(values: Array, axis: int) -> tuple[Array, Array]:
    """Return the sums of values and of their squares along a channel axis, float32 [entries, channels], entries being those of axis 0.

    An entry's sums do not depend on the entries it comes with.
    """
    channels = np.moveaxis(values, axis, 1) if values.ndim > 1 else values[None, :]
    rows = channels.reshape(len(channels), channels.shape[1], -1).astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.sum(axis=2), np.einsum("nct,nct->nc", rows, rows)
