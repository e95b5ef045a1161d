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
from qdq.recovery.range_refinement import (
    RangeRefinements,
    apply_refinements,
    refine_ranges,
)
from qdq.recovery.refined_range import RefinedRange

__all__ = [
    "BiasCorrection",
    "BiasCorrections",
    "RangeRefinements",
    "RefinedRange",
    "SelectedCorrections",
    "apply_bias_corrections",
    "apply_refinements",
    "equalize",
    "find_bias_corrections",
    "find_equalizations",
    "read_bias_corrections",
    "refine_ranges",
    "select_corrections",
]
