"""Recovery: what makes an INT8 model more accurate without leaving layers in float."""

from __future__ import annotations

from qdq.recovery.bias_correction import (
    BiasCorrection,
    BiasCorrections,
    apply_bias_corrections,
    find_bias_corrections,
    read_bias_corrections,
)
from qdq.recovery.correction_selection import SelectedCorrections, select_corrections
from qdq.recovery.equalization import equalize, find_equalizations

__all__ = [
    "BiasCorrection",
    "BiasCorrections",
    "SelectedCorrections",
    "apply_bias_corrections",
    "equalize",
    "find_bias_corrections",
    "find_equalizations",
    "read_bias_corrections",
    "select_corrections",
]
