"""Recovery of accuracy in layers that stay quantized."""

from __future__ import annotations

from qdq.recovery.range_refinement import (
    RangeRefinements,
    apply_refinements,
    refine_ranges,
)
from qdq.recovery.refined_range import RefinedRange

__all__ = [
    "RangeRefinements",
    "RefinedRange",
    "apply_refinements",
    "refine_ranges",
]
