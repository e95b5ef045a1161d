"""Ranges: observed statistics of tensors, as records that merge exactly.

Counts and channel sums are integers. The ranges of parts of some data, merged in any order, are
therefore those of the whole, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from qdq.arguments import list_items, require_type, to_count
from qdq.arrays import Floats
from qdq.errors import DataError, UsageError
from qdq.planning.decisions import ScaleGroup
from qdq.ranges.channel_importance import GRADE_COUNT, GRADE_FACTOR
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import Histogram

#: Between the names of data whose ranges were merged.
_DATA_SEPARATOR = " + "

#: How many digits of a model's digest messages show.
_DIGEST_DIGITS = 12

_Key = TypeVar("_Key", int, str)

_Grade = Annotated[int, msgspec.Meta(ge=0, lt=GRADE_COUNT)]


class Moments(msgspec.Struct, frozen=True):
    """The exact sums of each channel of a tensor: the order of the samples does not matter."""

    #: The number of values of each channel.
    count: Annotated[int, msgspec.Meta(gt=0)]
    sums: ExactSum
    squares: ExactSum

    @property
    def mean(self) -> Floats:
        """The mean of each channel, a float64 vector."""
        return self.sums.divided(self.count)

    @property
    def variance(self) -> Floats:
        """The variance of each channel, a float64 vector."""
        _, variance = self.mean_and_variance()
        return variance

    def mean_and_variance(self) -> tuple[Floats, Floats]:
        """Return the mean and the variance of each channel; the mean is calculated once."""
        mean = self.mean
        return mean, np.maximum(self.squares.divided(self.count) - mean**2, 0.0)

    def merged(self, other: Moments) -> Moments:
        """Return the moments of all values; both must have as many channels."""
        sums = self.sums.merged(other.sums)
        squares = self.squares.merged(other.squares)
        return Moments(self.count + other.count, sums, squares)


class TensorRange(msgspec.Struct, frozen=True):
    """The observed statistics of one tensor."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    #: The largest absolute value.
    amax: float
    #: Counts of absolute values, where the method needs them.
    histogram: Histogram | None = None
    #: For the input of a layer with a constant weight: the sums of its channels.
    moments: Moments | None = None
    #: Whether any sample computed the tensor: bodies may not run.
    seen: bool = True
    #: Whether moments have no meaning: a sum overflowed, or samples differ in channels.
    moments_lost: bool = msgspec.field(default=False, name="lost")
    #: The parts of the histogram by the grade of channels, where channels differ in importance.
    by_grade: tuple[tuple[_Grade, Histogram], ...] = ()
    #: Whether any sample held values of the tensor: some samples select none.
    filled: bool = True

    @property
    def weighed(self) -> tuple[tuple[float, Histogram], ...]:
        """Histograms with the importance of their values to the layers that read the tensor."""
        if self.histogram is None:
            return ()
        if not self.by_grade:
            return ((1.0, self.histogram),)
        parts: list[tuple[float, Histogram]] = []
        for grade, part in self.by_grade:
            weight = float(GRADE_FACTOR) ** -grade
            parts.append((weight, part))
        return tuple(parts)

    def merged(self, other: TensorRange) -> TensorRange:
        """Return the statistics of all values of the tensor."""
        lost = self.moments_lost or other.moments_lost
        lost = lost or _have_other_channels(self.moments, other.moments)
        other_parts = dict(other.by_grade)
        by_grade: list[tuple[int, Histogram]] = []
        for grade, part in self.by_grade:
            other_part = other_parts[grade]
            by_grade.append((grade, part.merged(other_part)))
        return TensorRange(
            tensor=self.tensor,
            amax=max(self.amax, other.amax),
            histogram=_merge_histograms(self.histogram, other.histogram),
            moments=None if lost else _merge_moments(self.moments, other.moments),
            seen=self.seen or other.seen,
            moments_lost=lost,
            by_grade=tuple(by_grade),
            filled=self.filled or other.filled,
        )


class Part(msgspec.Struct, frozen=True, order=True):
    """Every n-th sample: sample k of all belongs to part k mod `of`, counted from 1."""

    #: From 1 to `of`.
    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        to_count(self.of, 1, "Part.of")
        if to_count(self.number, 1, "Part.number") > self.of:
            raise UsageError(f"there is no part {self} of some samples. Pass a smaller number.")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class Ranges(msgspec.Struct, frozen=True):
    """The observed statistics of all planned activations."""

    #: Digest of the model that was run.
    model: str
    #: The name of the data, and how many of its samples were run.
    data: str
    samples: int
    by_tensor: tuple[TensorRange, ...]
    #: The least and the largest size of axis 0 of the samples; 0 where the inputs of one sample
    #: differ in it.
    sizes: tuple[int, ...] = ()
    #: The number of parts of the samples, and which parts were run; 1 and (1,) for all samples.
    of: int = 1
    parts: tuple[int, ...] = (1,)
    #: The tensors that share one range in the plan.
    groups: tuple[ScaleGroup, ...] = ()
    #: Whether all samples of the parts were run; False in checkpoints.
    finished: bool = True

    @property
    def batch(self) -> str:
        """The entries of one sample, as ``8`` or ``1 to 8``; empty where they are not known."""
        if 0 in self.sizes:
            return ""
        return " to ".join(map(str, self.sizes))

    @property
    def missing(self) -> tuple[int, ...]:
        """The parts that were not run."""
        all_parts = range(1, self.of + 1)
        return tuple(sorted(set(all_parts) - set(self.parts)))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that were observed."""
        return tuple(tensor_range.tensor for tensor_range in self.by_tensor)


def size_extent(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return the least and the largest size, once where they are equal.

    The result is (0,) where 0 is among the sizes, and () for none.
    """
    unique = set(sizes)
    if 0 in unique:
        return (0,)
    if not unique:
        return ()
    return tuple(sorted({min(unique), max(unique)}))


def merge(several: Iterable[Ranges]) -> Ranges:
    """Return the ranges of all samples of several: of parts of one run or of different data.

    Their order does not matter. Raises DataError where they are of different models or tensors, of
    parts of different splits, or hold the same samples twice.
    """
    several = list_items(several, Ranges, "ranges", "what qdq.observe returns")
    for ranges in several:
        require_type(ranges, Ranges, "ranges", "what qdq.observe returns")
    if not several:
        raise DataError("there are no ranges to merge. Pass at least one.")
    for other in several[1:]:
        _require_alike(several[0], other)
    by_data: dict[str, list[Ranges]] = {}
    for ranges in several:
        by_data.setdefault(ranges.data, []).append(ranges)
    joined = [_join_parts(by_data[data]) for data in sorted(by_data)]
    if len(joined) > 1:
        _require_whole(joined)
    data = _DATA_SEPARATOR.join(sorted(_list_data(joined)))
    return _sum(joined, data, joined[0].of, joined[0].parts)


def join_runs(before: Ranges, after: Ranges) -> Ranges:
    """Return the ranges of one part whose samples were run in two steps."""
    total = _sum((before, after), before.data, before.of, before.parts)
    return msgspec.structs.replace(total, finished=after.finished)


def join_passes(several: Sequence[Ranges]) -> Ranges:
    """Return the ranges of several passes over the same samples, each of other tensors."""
    by_tensor: list[TensorRange] = []
    for ranges in several:
        by_tensor.extend(ranges.by_tensor)
    by_tensor.sort(key=lambda tensor_range: tensor_range.tensor)
    return msgspec.structs.replace(several[-1], by_tensor=tuple(by_tensor))


def _have_other_channels(first: Moments | None, second: Moments | None) -> bool:
    """Whether two moments are of different numbers of channels."""
    return first is not None and second is not None and first.sums.size != second.sums.size


def _merge_moments(first: Moments | None, second: Moments | None) -> Moments | None:
    if first is None:
        return second
    if second is None:
        return first
    return first.merged(second)


def _merge_histograms(first: Histogram | None, second: Histogram | None) -> Histogram | None:
    if first is None or second is None:
        return None
    return first.merged(second)


def _require_alike(first: Ranges, other: Ranges) -> None:
    """Raise DataError unless two ranges are of one model, one plan and one method."""
    if first.model != other.model:
        digests = f"{first.model[:_DIGEST_DIGITS]} and {other.model[:_DIGEST_DIGITS]}"
        raise DataError(
            f"the ranges are of different models, with digests {digests}. Pass ranges of one model."
        )
    different = sorted(set(first.tensors) ^ set(other.tensors))
    if different or first.groups != other.groups:
        detail = f", and only some hold {different[0]!r}" if different else ""
        raise DataError(
            f"the ranges were observed for different plans{detail}. Observe them all with one plan."
        )
    if _tensors_with_histogram(first) != _tensors_with_histogram(other):
        raise DataError(
            "some of the ranges were observed for --method max only and have no histograms. "
            "Observe them all with one method."
        )
    if _grades_by_tensor(first) != _grades_by_tensor(other):
        raise DataError(
            "the channels were graded by different versions of qdq or numpy. "
            "Observe all ranges with one version."
        )


def _tensors_with_histogram(ranges: Ranges) -> set[str]:
    tensors: set[str] = set()
    for item in ranges.by_tensor:
        if item.histogram is not None:
            tensors.add(item.tensor)
    return tensors


def _grades_by_tensor(ranges: Ranges) -> dict[str, list[int]]:
    """Return the grades of the channels of each tensor."""
    grades: dict[str, list[int]] = {}
    for tensor_range in ranges.by_tensor:
        grades[tensor_range.tensor] = [grade for grade, _ in tensor_range.by_grade]
    return grades


def _join_parts(same_data: list[Ranges]) -> Ranges:
    """Return the ranges of all parts of one run."""
    data = same_data[0].data
    of = same_data[0].of
    counts = {ranges.of for ranges in same_data}
    if len(counts) > 1:
        numbers = " and ".join(sorted(map(str, counts)))
        raise DataError(
            f"{data}: the samples were split into {numbers} parts. Pass the parts of one split."
        )
    parts: list[int] = []
    for ranges in same_data:
        parts.extend(ranges.parts)
    repeated = _find_repeated(parts)
    if repeated:
        name = f"part {repeated[0]}/{of} of {data}" if of > 1 else data
        raise DataError(f"{name} is passed twice and would count twice. Remove one.")
    if len(parts) == of:
        return _sum(same_data, data, 1, (1,))
    return _sum(same_data, data, of, tuple(sorted(parts)))


def _require_whole(several: Sequence[Ranges]) -> None:
    """Raise DataError unless ranges are of different data and of all samples of it."""
    repeated = _find_repeated(_list_data(several))
    if repeated:
        raise DataError(
            f"{repeated[0]} is in two of the ranges and would count twice. Remove one of them."
        )
    for ranges in several:
        if ranges.missing:
            part = f"part {ranges.missing[0]}/{ranges.of}"
            raise DataError(
                f"{ranges.data}: {part} is missing. Add all of its parts before other data."
            )


def _list_data(several: Sequence[Ranges]) -> list[str]:
    """Return the names of the data of ranges, of merged ones each."""
    names: list[str] = []
    for ranges in several:
        names.extend(ranges.data.split(_DATA_SEPARATOR))
    return names


def _find_repeated(values: Iterable[_Key]) -> list[_Key]:
    """Return the values that occur more than once, in ascending order."""
    return sorted(value for value, count in Counter(values).items() if count > 1)


def _sum(several: Sequence[Ranges], data: str, of: int, parts: tuple[int, ...]) -> Ranges:
    """Return the ranges of all samples of several ranges of the same tensors."""
    by_tensor = {item.tensor: item for item in several[0].by_tensor}
    for ranges in several[1:]:
        for item in ranges.by_tensor:
            by_tensor[item.tensor] = by_tensor[item.tensor].merged(item)
    samples = 0
    sizes: set[int] = set()
    for ranges in several:
        samples += ranges.samples
        sizes.update(ranges.sizes)
    return Ranges(
        model=several[0].model,
        data=data,
        samples=samples,
        by_tensor=tuple(by_tensor[tensor] for tensor in sorted(by_tensor)),
        sizes=size_extent(sizes),
        of=of,
        parts=parts,
        groups=several[0].groups,
        finished=all(ranges.finished for ranges in several),
    )
