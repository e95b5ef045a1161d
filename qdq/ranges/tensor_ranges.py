"""Ranges: what tensors were seen to hold, as records that merge exactly.

Counts and channel sums are integers, so ranges of parts of some data, merged in any order, are those
of the whole, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from qdq.arrays import Floats
from qdq.errors import DataError
from qdq.planning.decisions import ScaleGroup
from qdq.ranges.channel_importance import GRADE_FACTOR
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import Histogram

#: Between the names of data whose ranges were merged.
_JOINED = " + "


class Moments(msgspec.Struct, frozen=True):
    """What the channels of a tensor add up to, exactly: the same whatever the order of the samples."""

    #: How many values each channel held.
    count: int
    sums: ExactSum
    squares: ExactSum

    @property
    def mean(self) -> Floats:
        """The mean of each channel, a float64 vector."""
        return self.sums.divided(self.count)

    @property
    def variance(self) -> Floats:
        """The variance of each channel, a float64 vector."""
        return np.maximum(self.squares.divided(self.count) - self.mean**2, 0.0)

    def merged(self, other: Moments) -> Moments:
        """Return what both hold; they must have as many channels."""
        return Moments(
            self.count + other.count,
            self.sums.merged(other.sums),
            self.squares.merged(other.squares),
        )


class TensorRange(msgspec.Struct, frozen=True):
    """What one tensor was seen to hold."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    #: The largest absolute value.
    amax: float
    #: Counts of absolute values, where the method needs them.
    histogram: Histogram | None = None
    #: For the input of a layer with a constant weight: what its channels hold.
    moments: Moments | None = None
    #: Whether any sample computed it: those in bodies may not run.
    seen: bool = True
    #: Whether moments were wanted and have no meaning: a sum overflowed, or samples differ in channels.
    lost: bool = False
    #: The histogram's parts where channels matter differently: of the channels of each grade.
    by_grade: tuple[tuple[int, Histogram], ...] = ()

    @property
    def weighed(self) -> tuple[tuple[float, Histogram], ...]:
        """Histograms with how much their values matter to the layers that read the tensor."""
        if self.histogram is None:
            return ()
        return tuple((float(GRADE_FACTOR) ** -grade, part) for grade, part in self.by_grade) or (
            (1.0, self.histogram),
        )

    def merged(self, other: TensorRange) -> TensorRange:
        """Return what the tensor holds in both."""
        histogram = (
            self.histogram.merged(other.histogram) if self.histogram and other.histogram else None
        )
        parts = dict(other.by_grade)
        by_grade = tuple((grade, part.merged(parts[grade])) for grade, part in self.by_grade)
        pair = [m for m in (self.moments, other.moments) if m is not None]
        lost = self.lost or other.lost or len({m.sums.size for m in pair}) > 1
        moments = (
            None if lost or not pair else pair[0] if len(pair) == 1 else pair[0].merged(pair[1])
        )
        return TensorRange(
            self.tensor,
            max(self.amax, other.amax),
            histogram,
            moments,
            self.seen or other.seen,
            lost,
            by_grade,
        )


class Part(msgspec.Struct, frozen=True, order=True):
    """Every n-th sample: sample k of all belongs to part k mod `of`, counted from 1."""

    #: From 1 to `of`.
    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class Ranges(msgspec.Struct, frozen=True):
    """What every planned activation was seen to hold."""

    #: Digest of the model that was run.
    model: str
    #: What the data was, and how many samples of it were run.
    data: str
    samples: int
    by_tensor: tuple[TensorRange, ...]
    #: The sizes of axis 0 that samples had, the least and the largest; 0 where the inputs of one sample differ in it.
    sizes: tuple[int, ...] = ()
    #: Into how many parts the samples were dealt, and which of these were run; 1 and (1,) for all of them.
    of: int = 1
    parts: tuple[int, ...] = (1,)
    #: The tensors that the plan gave one range.
    groups: tuple[ScaleGroup, ...] = ()
    #: Whether all samples of the parts were run; False in checkpoints.
    finished: bool = True

    @property
    def batch(self) -> str:
        """How many entries one sample held, as ``8`` or ``1 to 8``; empty where that is not known."""
        return "" if 0 in self.sizes else " to ".join(map(str, self.sizes))

    @property
    def missing(self) -> tuple[int, ...]:
        """The parts that were not run."""
        return tuple(sorted(set(range(1, self.of + 1)) - set(self.parts)))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that were observed."""
        return tuple(seen.tensor for seen in self.by_tensor)


def size_extent(sizes: Iterable[int]) -> tuple[int, ...]:
    """Return the least and the largest size, once where they are equal; 0 alone where it is among them."""
    found = set(sizes)
    return (0,) if 0 in found else tuple(sorted({min(found), max(found)})) if found else ()


def merge(several: Sequence[Ranges]) -> Ranges:
    """Return the ranges of all samples of several: of parts of one run, or of different data, in any order.

    Raises DataError where they are of different models or tensors, of parts dealt in different ways, or hold
    the same samples twice.
    """
    if not several:
        raise DataError("there are no ranges to merge; pass some")
    for other in several[1:]:
        _require_alike(several[0], other)
    by_data: dict[str, list[Ranges]] = {}
    for ranges in several:
        by_data.setdefault(ranges.data, []).append(ranges)
    dealt = [_join_parts(same) for _, same in sorted(by_data.items())]
    if len(dealt) > 1:
        _require_whole(dealt)
    data = _JOINED.join(sorted(name for ranges in dealt for name in ranges.data.split(_JOINED)))
    return _summed(dealt, data, dealt[0].of, dealt[0].parts)


def _require_alike(first: Ranges, other: Ranges) -> None:
    if first.model != other.model:
        raise DataError(
            f"one is of the model with digest {first.model[:12]}, another of {other.model[:12]}; merge ranges of one model"
        )
    kinds = [
        {
            seen.tensor: (seen.histogram is not None, [grade for grade, _ in seen.by_grade])
            for seen in ranges.by_tensor
        }
        for ranges in (first, other)
    ]
    if set(kinds[0]) != set(kinds[1]) or first.groups != other.groups:
        differ = sorted(set(kinds[0]) ^ set(kinds[1]))
        raise DataError(
            f"they were observed for different plans{f': only one has {differ[0]!r}' if differ else ''}; calibrate with one plan"
        )
    if any(kinds[0][tensor][0] != full for tensor, (full, _) in kinds[1].items()):
        raise DataError(
            "one was observed for --method max only and has no histograms; calibrate all with one method"
        )
    if kinds[0] != kinds[1]:
        raise DataError(
            "their channels were graded by different versions of qdq or numpy; observe all with one"
        )


def _join_parts(same: list[Ranges]) -> Ranges:
    """Return the ranges of all parts of one run."""
    of, numbers = same[0].of, [number for ranges in same for number in ranges.parts]
    if any(ranges.of != of for ranges in same):
        raise DataError(
            f"{same[0].data}: its samples were dealt into {' and '.join(sorted({str(r.of) for r in same}))} parts; merge parts of one deal"
        )
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        which = f"part {twice[0]}/{of} of {same[0].data}" if of > 1 else same[0].data
        raise DataError(f"{which} is given twice, and would count twice; leave one out")
    parts = tuple(sorted(numbers))
    return (
        _summed(same, same[0].data, 1, (1,))
        if len(parts) == of
        else _summed(same, same[0].data, of, parts)
    )


def _require_whole(dealt: list[Ranges]) -> None:
    names = [name for ranges in dealt for name in ranges.data.split(_JOINED)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{twice[0]} is in two of them, and would count twice; leave one out")
    for ranges in dealt:
        if ranges.missing:
            raise DataError(
                f"{ranges.data}: part {ranges.missing[0]}/{ranges.of} is missing; merge all parts of it before joining other data"
            )


def _summed(several: Sequence[Ranges], data: str, of: int, parts: tuple[int, ...]) -> Ranges:
    by_tensor = {seen.tensor: seen for seen in several[0].by_tensor}
    for ranges in several[1:]:
        for seen in ranges.by_tensor:
            by_tensor[seen.tensor] = by_tensor[seen.tensor].merged(seen)
    return Ranges(
        model=several[0].model,
        data=data,
        samples=sum(ranges.samples for ranges in several),
        by_tensor=tuple(by_tensor[tensor] for tensor in sorted(by_tensor)),
        sizes=size_extent(size for ranges in several for size in ranges.sizes),
        of=of,
        parts=parts,
        groups=several[0].groups,
        finished=all(ranges.finished for ranges in several),
    )


def join_runs(before: Ranges, after: Ranges) -> Ranges:
    """Return the ranges of one part whose samples were run in two goes."""
    return msgspec.structs.replace(
        _summed((before, after), before.data, before.of, before.parts), finished=after.finished
    )


def join_passes(several: Sequence[Ranges]) -> Ranges:
    """Return what several passes over the same samples observed, each other tensors."""
    seen = sorted(
        (seen for ranges in several for seen in ranges.by_tensor), key=lambda seen: seen.tensor
    )
    return msgspec.structs.replace(several[-1], by_tensor=tuple(seen))
