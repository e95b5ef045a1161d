"""Recovery: a calibrated plan again, with channels equalized and a sensitive part in float.

Each step is measured on a few calibration samples, and stays only where it helps.
"""

from __future__ import annotations

import msgspec

from qdq.calibration.methods import DEFAULT_METHOD
from qdq.calibration.scale_choice import choose_scales
from qdq.calibration.scales import Scales
from qdq.data.feeds import FeedSample
from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.memory import format_gigabytes
from qdq.pipeline.plan_equalizer import (
    FIRST_SAMPLES,
    EqualizedPlan,
    PlanEqualizer,
    open_equalizer,
)
from qdq.pipeline.recovery_job import LEAST_GAIN_DB, RecoveryJob, RecoveryStep, repeat_request
from qdq.pipeline.recovery_options import CLIP, EQUALIZE, REFINE
from qdq.planning.decisions import Plan
from qdq.planning.planner import plan_index
from qdq.ranges.given_ranges import match_given_ranges
from qdq.recovery.heavy_tails import clip_heavy_tails
from qdq.recovery.range_refinement import RangeRefinements, apply_refinements, refine_ranges
from qdq.sensitivity.budget import BUDGET_SAMPLES, Budget, search_budget
from qdq.sensitivity.guard import GUARD_SAMPLES, guard_plan
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.partial_result import PartialResult
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity

#: The most bytes of weights with which the guard runs by itself: it holds them four times:
#: as they are, rounded, and packed for both by ONNX Runtime.
_MOST_GUARDED_BYTES = 1 << 29

#: The samples that ranges are refined with, and how many times one of them is run at most.
_REFINEMENT_SAMPLES = 8
_REFINEMENT_RUNS = 256

#: The gain in dB over the first samples for which equalization is tried with more of them.
LEAST_FIRST_GAIN_DB = 0.5

#: Other ranges cost nothing, and are kept for this gain in dB.
_LEAST_RANGE_GAIN_DB = 0.25


class RecoveredPlan(msgspec.Struct, frozen=True):
    """A plan with its scales after recovery, and what was measured."""

    calibrated: CalibratedPlan
    steps: tuple[RecoveryStep, ...] = ()
    #: What the guard or a budget measured, or why nothing was; None where both are off.
    partial: PartialResult | str | None = None


def recover_plan(job: RecoveryJob) -> RecoveredPlan:
    """Return the plan after recovery.

    Raises ModelError where ONNX Runtime rejects the model, DataError where it fails on a sample,
    and MetricError where the metric of a budget does not fit.
    """
    budget = job.options.budget
    obstacle = _find_obstacle(job)
    if obstacle and budget is None:
        return RecoveredPlan(job.calibrated, (), obstacle)
    is_searched = job.options.guard_share > 0.0 or budget is not None
    equalizer = open_equalizer(job) if EQUALIZE in job.options.method_names else None
    tails = _find_heavy_tails(job)
    is_refined = REFINE in job.options.method_names and job.calibrated.ranges is not None
    if not (is_searched or is_refined or tails or equalizer):
        return RecoveredPlan(job.calibrated)
    samples = job.read_samples(_count_samples(budget))
    recovered = _Recovered(job.calibrated, _open_sensitivity(job, samples))
    if equalizer is not None:
        recovered = _equalize(recovered, equalizer, samples)
    if tails:
        recovered = _clip(recovered)
    if is_refined:
        recovered = _refine(job, recovered)
    calibrated, steps = recovered.calibrated, recovered.steps
    partial = _search(job, recovered.sensitivity) if is_searched else None
    if isinstance(partial, PartialResult) and partial.sensitive:
        calibrated = _plan_partially(job, recovered, partial)
    return RecoveredPlan(calibrated, steps, partial)


class _Recovered(msgspec.Struct, frozen=True):
    """The best plan so far, its measurement, and the methods that were tried."""

    calibrated: CalibratedPlan
    sensitivity: PlanSensitivity
    steps: tuple[RecoveryStep, ...] = ()

    def replace_plan(
        self,
        method: str,
        places: int,
        tried: CalibratedPlan,
        least_gain_db: float = LEAST_GAIN_DB,
        samples: int | None = None,
    ) -> _Recovered:
        """Return the better one of this plan and another one, with the step of its method.

        Both are measured with all of their pairs, over the first samples or all.
        """
        sensitivity = self.sensitivity.with_plan(tried)
        before_db = _measure_snr(self.sensitivity, samples)
        after_db = _measure_snr(sensitivity, samples)
        is_kept = after_db - before_db >= least_gain_db
        step = RecoveryStep(method, places, before_db, after_db, is_kept)
        if is_kept:
            return _Recovered(tried, sensitivity, (*self.steps, step))
        return _Recovered(self.calibrated, self.sensitivity, (*self.steps, step))


def _measure_snr(sensitivity: PlanSensitivity, samples: int | None) -> float:
    return to_decibels(sensitivity.measurement.measure(sensitivity.full, samples))


def _equalize(
    recovered: _Recovered, equalizer: PlanEqualizer, samples: list[FeedSample]
) -> _Recovered:
    """Return the plan with equalized channels where that is better.

    It is tried with factors and ranges from two samples first, then from a few, then with the
    ranges of all. Most models end at the first trial.
    """
    first = equalizer.equalize(recovered.sensitivity, samples[:FIRST_SAMPLES])
    if first is None:
        return recovered
    tried = _try_equalized(recovered, first, LEAST_FIRST_GAIN_DB, FIRST_SAMPLES)
    if not tried.steps[-1].is_kept:
        return tried
    second = equalizer.equalize(recovered.sensitivity, samples)
    if second is None:
        return recovered
    tried = _try_equalized(recovered, second, LEAST_GAIN_DB)
    if not tried.steps[-1].is_kept:
        return tried
    equalizer.require_restorable(second)
    if second.has_all_samples:
        return tried
    return _try_equalized(recovered, equalizer.observe_all(second), LEAST_GAIN_DB)


def _try_equalized(
    recovered: _Recovered,
    equalized: EqualizedPlan,
    least_gain_db: float,
    samples: int | None = None,
) -> _Recovered:
    places = len(equalized.equalizations)
    return recovered.replace_plan(
        EQUALIZE, places, equalized.calibrated, least_gain_db, samples=samples
    )


def _count_samples(budget: Budget | None) -> int | None:
    """Return the number of samples to measure with; None for all, which a metric needs."""
    if budget is None:
        return GUARD_SAMPLES
    return None if budget.max_drop is not None else BUDGET_SAMPLES


def _search(job: RecoveryJob, sensitivity: PlanSensitivity) -> PartialResult:
    budget = job.options.budget
    if budget is not None:
        return search_budget(sensitivity, budget)
    return guard_plan(sensitivity, job.options.guard_share)


def _open_sensitivity(job: RecoveryJob, samples: list[FeedSample]) -> PlanSensitivity:
    return PlanSensitivity(
        job.calibrated,
        samples,
        libraries=job.observing.ort_libraries,
        progress=job.options.progress,
    )


def _refine(job: RecoveryJob, recovered: _Recovered) -> _Recovered:
    """Return the plan with the ranges that leave the least measured error."""
    calibrated = recovered.calibrated
    assert calibrated.ranges is not None
    feeds = [sample.feed for sample in job.read_samples(_REFINEMENT_SAMPLES)]
    refinements = refine_ranges(
        calibrated.index,
        calibrated.plan,
        calibrated.scales,
        calibrated.ranges,
        feeds,
        _REFINEMENT_RUNS,
        libraries=job.observing.ort_libraries,
    )
    return _try_ranges(recovered, REFINE, refinements, LEAST_GAIN_DB)


def _find_heavy_tails(job: RecoveryJob) -> bool:
    """Whether the default method chose a range that a few values reach."""
    calibrated = job.calibrated
    if CLIP not in job.options.method_names or job.method.name != DEFAULT_METHOD:
        return False
    if calibrated.ranges is None:
        return False
    return bool(clip_heavy_tails(calibrated.plan, calibrated.scales, calibrated.ranges).ranges)


def _clip(recovered: _Recovered) -> _Recovered:
    """Return the plan with ranges without heavy tails where that is better."""
    calibrated = recovered.calibrated
    assert calibrated.ranges is not None
    clipped = clip_heavy_tails(calibrated.plan, calibrated.scales, calibrated.ranges)
    return _try_ranges(recovered, CLIP, clipped, _LEAST_RANGE_GAIN_DB)


def _try_ranges(
    recovered: _Recovered, method: str, refinements: RangeRefinements, least_gain_db: float
) -> _Recovered:
    """Return the plan with other ranges where that is better."""
    if not refinements.ranges:
        return recovered
    calibrated = recovered.calibrated
    scales = apply_refinements(calibrated.scales, refinements)
    refined = msgspec.structs.replace(calibrated, scales=scales)
    count = len(refinements.ranges)
    return recovered.replace_plan(method, count, refined, least_gain_db)


def _plan_partially(
    job: RecoveryJob, recovered: _Recovered, partial: PartialResult
) -> CalibratedPlan:
    """Return a plan again, with the sensitive layers in float; weights keep their scales."""
    calibrated = recovered.calibrated
    index, plan, ranges = calibrated.index, calibrated.plan, calibrated.ranges
    request = repeat_request(plan, job.rules)
    sensitive = (*request.sensitive, *partial.sensitive)
    partial_plan = plan_index(index, msgspec.structs.replace(request, sensitive=sensitive))
    if not partial_plan.placements or ranges is None:
        name = index.source.path or index.source.name
        raise ModelError(f"{name}: {partial.goal} leaves nothing in INT8. Lower it.")
    summary = job.summary
    if summary is not None and job.given_ranges is not None:
        summary = match_given_ranges(index, partial_plan, job.given_ranges)
    weights = [item for item in calibrated.scales.by_pair if not item.quantizer.calibrated]
    scales = choose_scales(index, partial_plan, ranges, job.method, summary, weights)
    if any(step.method in (CLIP, REFINE) and step.is_kept for step in recovered.steps):
        scales = _keep_scales(scales, calibrated.scales)
    return CalibratedPlan(index, partial_plan, scales, ranges)


def _keep_scales(scales: Scales, refined: Scales) -> Scales:
    """Return scales with those of the same pairs that were refined before."""
    known = {(item.tensor, item.quantizer): item for item in refined.by_pair}
    by_pair = tuple(known.get((item.tensor, item.quantizer), item) for item in scales.by_pair)
    return msgspec.structs.replace(scales, by_pair=by_pair)


def _find_obstacle(job: RecoveryJob) -> str:
    """Return why nothing is measured by default, "" where it is."""
    size = _count_weight_bytes(job.calibrated.index, job.calibrated.plan)
    most = _MOST_GUARDED_BYTES
    if job.observing.max_memory is not None:
        most = min(most, job.observing.max_memory // 8)
    if size <= most:
        return ""
    return (
        f"the guard did not run: it holds the weights ({format_gigabytes(size)}) four times. "
        "Pass a budget, such as --min-snr 25dB, to search all the same."
    )


def _count_weight_bytes(index: GraphIndex, plan: Plan) -> int:
    """Return the size of the float weights that a plan quantizes, four bytes a value."""
    sizes: dict[str, int] = {}
    for placement in plan.placements:
        if placement.quantizer.calibrated:
            continue
        edge = placement.edge
        shape = index.scope(edge).shape(edge.tensor) or ()
        count = 4
        for size in shape:
            count *= size or 1
        sizes[edge.qualified_tensor] = count
    return sum(sizes.values())
