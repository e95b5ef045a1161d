"""Models that hold Q/DQ pairs already: reading, converting to QDQ form, stripping and comparing them."""

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
