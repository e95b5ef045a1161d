"""Ranges that are known before a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from qdq.arguments import wrong_type
from qdq.ranges.given_ranges import GivenRanges, given_by_hand
from qdq.ranges.tensor_ranges import Ranges

#: Ranges from another source: given by a caller or a file, or observed earlier.
KnownRanges: TypeAlias = GivenRanges | Ranges

#: The forms in which the library's functions take them.
RangesLike: TypeAlias = KnownRanges | Mapping[str, float]


def to_known_ranges(ranges: RangesLike | None) -> KnownRanges | None:
    """Return ranges from another source; a mapping is of tensors to amax.

    Raises UsageError for an argument of another type.
    """
    if ranges is None or isinstance(ranges, (GivenRanges, Ranges)):
        return ranges
    if isinstance(ranges, Mapping):
        return given_by_hand(ranges)
    raise wrong_type(ranges, "given", "qdq.read_given(path), or a mapping of tensors to amax")
