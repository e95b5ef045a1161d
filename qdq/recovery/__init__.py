"""Recovery of accuracy in layers that stay quantized."""

from __future__ import annotations

from qdq.recovery.range_refinement import (
    RangeRefinements,
    RefinedRange,
    apply_refinements,
    refine_ranges,
)

__all__ = [
    "RangeRefinements",
    "RefinedRange",
    "apply_refinements",
    "refine_ranges",
]
