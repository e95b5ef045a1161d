"""Models with Q/DQ pairs: reading, conversion to plain pairs, stripping and comparison."""

from __future__ import annotations

from qdq.quantized.model import QuantizedModel
from qdq.quantized.pair_diff import PairDiff, diff
from qdq.quantized.stripper import strip

__all__ = [
    "PairDiff",
    "QuantizedModel",
    "diff",
    "strip",
]
