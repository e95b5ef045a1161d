"""A second look at ranges: other ranges for the tensors that matter, by the measured output error.

First each range is tried with all other activations in float, then small changes with all of them
quantized.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from qdq.arrays import Feed
from qdq.calibration.scale_choice import OUTLIER_RATIO
from qdq.calibration.scales import OutlierTensor, PairScale, Scales
from qdq.calibration.shared_scales import SharedRange
from qdq.errors import PlanError
from qdq.graph.index import GraphIndex
from qdq.planning.decisions import Plan
from qdq.ranges.tensor_ranges import Ranges
from qdq.recovery.joint_search import JointSearch
from qdq.recovery.range_candidates import SharedPairs, list_shared_pairs
from qdq.recovery.refined_range import RefinedRange
from qdq.recovery.scaled_session import ErrorMeter, ScaledSession
from qdq.recovery.single_search import SingleSearch

#: Two samples in each half.
_LEAST_SAMPLES = 4

_LEAST_SCALE = np.finfo(np.float32).tiny


class RangeRefinements(msgspec.Struct, frozen=True):
    """The ranges of a plan that another range replaces."""

    #: `Plan.key` of the plan that they belong to.
    plan: str
    #: The ranges, that with the most noise first; empty where no other range is better.
    ranges: tuple[RefinedRange, ...]
    #: The signal-to-noise ratio at the outputs in dB with all activations quantized, with the old
    #: and with the new ranges. The signal is that with quantized weights and float activations.
    #: They are NaN where nothing was measured.
    snr_before: float
    snr_after: float
    #: How many times a sample was run.
    runs: int


def refine_ranges(  # noqa: PLR0913 what a search needs: the model, its scales, data and a limit
    index: GraphIndex,
    plan: Plan,
    scales: Scales,
    ranges: Ranges,
    samples: Iterable[Feed],
    measure_budget: int,
    *,
    libraries: Sequence[Path] = (),
) -> RangeRefinements:
    """Return better ranges for the activations that make most of the noise at the outputs.

    At most `measure_budget` times a sample is run. Of the samples one half chooses a range, and the
    other half must confirm it. Ranges that the user specified stay. Raises ModelError where ONNX
    Runtime cannot run the model.
    """
    feeds = list(samples)
    shared = list_shared_pairs(plan, scales)
    nothing = RangeRefinements(plan.key, (), math.nan, math.nan, runs=0)
    # Half of them for the reference and one tensor to rank, then the noise of all with two choices.
    least_runs = 4 * len(feeds)
    if len(feeds) < _LEAST_SAMPLES or not shared or measure_budget < least_runs:
        return nothing
    session = ScaledSession(index, plan, scales, libraries)
    if not session.measured:
        return nothing
    meter = ErrorMeter(session, feeds)
    together = _search(meter, session, shared, ranges, measure_budget)
    return RangeRefinements(
        plan=plan.key,
        ranges=tuple(together.refined.values()),
        snr_before=together.snr_before,
        snr_after=together.snr_after,
        runs=meter.runs,
    )


def _search(
    meter: ErrorMeter,
    session: ScaledSession,
    shared: Sequence[SharedPairs],
    ranges: Ranges,
    budget: int,
) -> JointSearch:
    """Return the finished search; half of the runs are for single tensors."""
    single = SingleSearch(meter, ranges, budget // 2)
    ranked = single.rank(shared)
    for share, pairs in ranked:
        single.refine(share, pairs)
    together = JointSearch(meter, ranges, session.scales, budget)
    together.add(single.refined)
    for _, pairs in ranked:
        if pairs.keys not in together.refined:
            together.refine(pairs)
    return together


def apply_refinements(scales: Scales, refinements: RangeRefinements) -> Scales:
    """Return the scales with the refined ranges.

    Raises PlanError where they belong to another plan.
    """
    if refinements.plan != scales.plan:
        raise PlanError("the refined ranges are of another plan. Refine the ranges of this one.")
    refined: dict[tuple[str, str], RefinedRange] = {}
    for item in refinements.ranges:
        refined.update(dict.fromkeys(((tensor, item.dtype) for tensor in item.tensors), item))
    by_pair = tuple(_refine_pair(pair, refined) for pair in scales.by_pair)
    shared = tuple(_refine_shared(record, refined) for record in scales.shared)
    outliers = _list_outliers(scales, refinements)
    return msgspec.structs.replace(scales, by_pair=by_pair, shared=shared, outliers=outliers)


def _refine_pair(pair: PairScale, refined: Mapping[tuple[str, str], RefinedRange]) -> PairScale:
    quantizer = pair.quantizer
    item = refined.get((pair.tensor, quantizer.dtype))
    if item is None or not quantizer.calibrated:
        return pair
    scale = max(np.float32(item.new_amax / quantizer.element.largest), _LEAST_SCALE)
    return msgspec.structs.replace(pair, scales=(float(scale),))


def _refine_shared(
    record: SharedRange, refined: Mapping[tuple[str, str], RefinedRange]
) -> SharedRange:
    item = refined.get((record.tensor, record.dtype))
    return record if item is None else msgspec.structs.replace(record, amax=item.new_amax)


def _list_outliers(scales: Scales, refinements: RangeRefinements) -> tuple[OutlierTensor, ...]:
    """Return the tensors that reach so many times their range, the farthest first."""
    outliers = {outlier.tensor: outlier for outlier in scales.outliers}
    for item in refinements.ranges:
        for tensor, largest in zip(item.tensors, item.largest, strict=True):
            outliers.pop(tensor, None)
            if largest >= OUTLIER_RATIO * item.new_amax:
                outliers[tensor] = OutlierTensor(tensor, largest, item.new_amax)
    by_distance = sorted(outliers.values(), key=lambda outlier: outlier.clipped_at / outlier.amax)
    return tuple(by_distance)
