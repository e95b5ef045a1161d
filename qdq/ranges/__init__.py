"""Ranges of tensors: what observers collected or users specify, and the files that hold them."""

from __future__ import annotations

from qdq.ranges.given_ranges import GivenRanges
from qdq.ranges.range_file import read_ranges, write_ranges
from qdq.ranges.tensor_ranges import Ranges, TensorRange, merge

__all__ = [
    "GivenRanges",
    "Ranges",
    "TensorRange",
    "merge",
    "read_ranges",
    "write_ranges",
]
