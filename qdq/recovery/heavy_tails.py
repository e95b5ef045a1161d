"""Ranges of tensors with heavy tails: a few values that are far beyond all others.

Transformers hold massive activations, a few enormous values whose clipping changes nothing (Sun et
al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762). A range that holds them
has the least error in the next layer, and leaves few levels to all other values.
"""

from __future__ import annotations

import math

from qdq.calibration.methods import parse_method
from qdq.calibration.scales import Scales
from qdq.planning.decisions import Plan
from qdq.ranges.tensor_ranges import Ranges
from qdq.recovery.range_candidates import SharedPairs, list_shared_pairs
from qdq.recovery.range_refinement import RangeRefinements
from qdq.recovery.refined_range import RefinedRange, list_largest

#: The range of all but the largest values: 99.99 % of them.
_BULK = parse_method("percentile")

#: A tail is heavy where a range is this many times that of the other values. On the models of
#: docs/results.md that is so of the activations in feed-forward layers of a transformer alone.
_LEAST_RATIO = 2.0


def clip_heavy_tails(plan: Plan, scales: Scales, ranges: Ranges) -> RangeRefinements:
    """Return the ranges that end where the bulk of a tensor's values does.

    Ranges that the user specified stay. Nothing is measured.
    """
    by_tensor = {item.tensor: item for item in ranges.by_tensor}
    clipped: list[RefinedRange] = []
    for pairs in list_shared_pairs(plan, scales):
        bulk_amax = _find_bulk(pairs, ranges)
        if not 0.0 < bulk_amax <= pairs.amax / _LEAST_RATIO:
            continue
        clipped.append(
            RefinedRange(
                tensors=pairs.tensors,
                dtype=pairs.dtype,
                old_amax=pairs.amax,
                new_amax=bulk_amax,
                snr_before=math.nan,
                snr_after=math.nan,
                largest=list_largest(pairs, by_tensor),
            )
        )
    return RangeRefinements(plan.key, tuple(clipped), math.nan, math.nan, runs=0)


def _find_bulk(pairs: SharedPairs, ranges: Ranges) -> float:
    """Return the largest range of the bulk of the tensors, 0 where values were not counted."""
    largest = 0.0
    for item in ranges.by_tensor:
        if item.tensor in pairs.tensors:
            if item.histogram is None:
                return 0.0
            largest = max(largest, _BULK.amax(item, pairs.element))
    return largest
