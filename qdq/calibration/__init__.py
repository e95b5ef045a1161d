"""Calibration: from statistics and given ranges to the scales of a plan."""

from __future__ import annotations

from qdq.calibration.calibrator import calibrate, observe
from qdq.calibration.methods import Method, parse_method
from qdq.calibration.scales import PairScale, Scales

__all__ = [
    "Method",
    "PairScale",
    "Scales",
    "calibrate",
    "observe",
    "parse_method",
]
