"""Recovery of accuracy in layers that stay quantized."""

from qdq.recovery.bias_correction import (
    BiasCorrection,
    BiasCorrections,
    apply_bias_corrections,
    find_bias_corrections,
    read_bias_corrections,
)
from qdq.recovery.correction_selection import SelectedCorrections, select_corrections

__all__ = [
    "BiasCorrection",
    "BiasCorrections",
    "SelectedCorrections",
    "apply_bias_corrections",
    "find_bias_corrections",
    "read_bias_corrections",
    "select_corrections",
]
