"""Recovery: a calibrated plan again, with channels equalized and a sensitive part in float.

Each step is measured on a few calibration samples, and stays only where it helps.
"""

from __future__ import annotations

import msgspec

from qdq.calibration.calibrator import choose_scales
from qdq.calibration.methods import Method
from qdq.calibration.scales import Scales
from qdq.data.feeds import DataLike, FeedSample
from qdq.data.sample_recorder import read_samples_again, repeatable_data
from qdq.errors import ModelError
from qdq.graph.equalized_weights import Equalization
from qdq.graph.float_types import FLOAT_TYPES, FP32
from qdq.graph.index import GraphIndex
from qdq.memory import format_gigabytes
from qdq.observers.collection import CollectionJob, Observing, collect_locally
from qdq.pipeline.recovery_options import EQUALIZE, REFINE, Recovery
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index
from qdq.ranges.given_ranges import GivenRanges, GivenSummary, match_given_ranges
from qdq.ranges.tensor_ranges import Ranges
from qdq.recovery.equalization import equalize, find_equalizations
from qdq.recovery.range_refinement import apply_refinements, refine_ranges
from qdq.rules.rule import RuleSet
from qdq.sensitivity.budget import BUDGET_SAMPLES, Budget, search_budget
from qdq.sensitivity.guard import GUARD_SAMPLES, guard_plan
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.partial_result import PartialResult
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity

#: The most bytes of weights with which the guard runs by itself: it holds them three times.
_MOST_GUARDED_BYTES = 1 << 29

#: The samples that channels are measured with for their factors.
_EQUALIZATION_SAMPLES = 8

#: The samples that ranges are refined with, and how many times one of them is run at most.
_REFINEMENT_SAMPLES = 8
_REFINEMENT_RUNS = 256

#: Below this gain in dB a model stays as it is.
_LEAST_GAIN_DB = 1.0


class RecoveryStep(msgspec.Struct, frozen=True):
    """One method that was tried, and what it gained."""

    #: "equalize", "refine" or "bias".
    method: str
    #: How many tensors or layers it changed.
    places: int
    #: The signal-to-noise ratio in dB without and with it: at the scores, before a final Softmax
    #: or Sigmoid; for "bias" at the outputs.
    before_db: float
    after_db: float
    is_kept: bool


class RecoveryJob(msgspec.Struct, frozen=True):
    """A calibrated plan, and what it was made with."""

    calibrated: CalibratedPlan
    rules: RuleSet
    method: Method
    given_ranges: GivenRanges | None
    summary: GivenSummary | None
    data: DataLike
    batch: int | None
    observing: Observing
    options: Recovery

    def read_samples(self, count: int | None) -> list[FeedSample]:
        """Return some samples of the data, or all for None."""
        return read_samples_again(self.calibrated.index, self.data, self.batch, count)


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
    is_equalized = EQUALIZE in job.options.method_names and _can_equalize(job)
    if not is_searched and not is_equalized:
        return RecoveredPlan(job.calibrated)
    samples = job.read_samples(_count_samples(budget))
    sensitivity = _open_sensitivity(job, job.calibrated, samples)
    recovered = _Recovered(job.calibrated, sensitivity)
    if is_equalized:
        recovered = _try_plan(job, recovered, samples, EQUALIZE, _equalize(job, sensitivity))
    if REFINE in job.options.method_names:
        refined = _refine(job, recovered.calibrated)
        recovered = _try_plan(job, recovered, samples, REFINE, refined)
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


def _try_plan(
    job: RecoveryJob,
    recovered: _Recovered,
    samples: list[FeedSample],
    method: str,
    tried: _RecoveredScales | None,
) -> _Recovered:
    """Return the better one of the best plan so far and another one, if there is another."""
    if tried is None:
        return recovered
    sensitivity = _open_sensitivity(job, tried.calibrated, samples)
    step = _compare(method, recovered.sensitivity, sensitivity, tried.places)
    steps = (*recovered.steps, step)
    if step.is_kept:
        return _Recovered(tried.calibrated, sensitivity, steps)
    return msgspec.structs.replace(recovered, steps=steps)


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


def _open_sensitivity(
    job: RecoveryJob, calibrated: CalibratedPlan, samples: list[FeedSample]
) -> PlanSensitivity:
    return PlanSensitivity(
        calibrated,
        samples,
        libraries=job.observing.ort_libraries,
        progress=job.options.progress,
    )


class _RecoveredScales(msgspec.Struct, frozen=True):
    """A plan with its scales after a method, and how many places the method changed."""

    calibrated: CalibratedPlan
    places: int


def _can_equalize(job: RecoveryJob) -> bool:
    """Whether ranges are observed: given ones are those of the channels as they are."""
    return job.summary is None and job.calibrated.ranges is not None


def _equalize(job: RecoveryJob, sensitivity: PlanSensitivity) -> _RecoveredScales | None:
    """Return the calibrated plan of the equalized model, None where little is to be gained."""
    index, plan = job.calibrated.index, job.calibrated.plan
    feeds = [sample.feed for sample in job.read_samples(_EQUALIZATION_SAMPLES)]
    equalizations = find_equalizations(index, plan, feeds)
    changed = frozenset(name for item in equalizations for name in item.tensors)
    if not equalizations or not _promises_gain(sensitivity, equalizations, changed):
        return None
    source = equalize(index.source, equalizations)
    equalized_index = GraphIndex(source)
    equalized_plan = plan_index(equalized_index, _repeat_request(plan, job.rules))
    ranges = _observe_changed(job, equalized_index, equalized_plan, changed)
    scales = choose_scales(equalized_index, equalized_plan, ranges, job.method)
    result = CalibratedPlan(equalized_index, equalized_plan, scales, ranges)
    return _RecoveredScales(result, len(equalizations))


def _promises_gain(
    sensitivity: PlanSensitivity,
    equalizations: tuple[Equalization, ...],
    changed: frozenset[str],
) -> bool:
    """Whether the layers that read changed tensors make enough of the noise to gain from it."""
    readers = {
        (placement.edge.graph, placement.edge.node)
        for placement in sensitivity.full
        if placement.edge.qualified_tensor in changed
    }
    pairs = {p for p in sensitivity.full if (p.edge.graph, p.edge.node) in readers}
    alone, full = sensitivity.measurement.measure_all([pairs, sensitivity.full])
    largest_gain_db = max(item.gain_db for item in equalizations)
    avoided = min(alone, full) * (1 - 10 ** (-largest_gain_db / 10))
    return avoided >= full * (1 - 10 ** (-_LEAST_GAIN_DB / 10))


def _observe_changed(
    job: RecoveryJob, index: GraphIndex, plan: Plan, changed: frozenset[str]
) -> Ranges:
    """Return the ranges of an equalized model; only tensors with factors are observed again."""
    ranges = job.calibrated.ranges
    assert ranges is not None
    placements = tuple(item for item in plan.placements if item.edge.qualified_tensor in changed)
    part = msgspec.structs.replace(plan, placements=placements)
    data = repeatable_data(job.data)
    collection = CollectionJob(index, part, data, job.method.needs_histogram, job.batch)
    observing = Observing(
        device=job.observing.device,
        cores=job.observing.cores,
        ort_libraries=job.observing.ort_libraries,
    )
    observed = collect_locally(collection, observing)
    new_ranges = {item.tensor: item for item in observed.by_tensor}
    by_tensor = tuple(new_ranges.get(item.tensor, item) for item in ranges.by_tensor)
    return msgspec.structs.replace(ranges, model=plan.digest, by_tensor=by_tensor)


def _refine(job: RecoveryJob, calibrated: CalibratedPlan) -> _RecoveredScales | None:
    """Return a plan with the ranges that leave the least measured error, None for none better."""
    index, plan, scales = calibrated.index, calibrated.plan, calibrated.scales
    if calibrated.ranges is None:
        return None
    feeds = [sample.feed for sample in job.read_samples(_REFINEMENT_SAMPLES)]
    refinements = refine_ranges(
        index,
        plan,
        scales,
        calibrated.ranges,
        feeds,
        _REFINEMENT_RUNS,
        libraries=job.observing.ort_libraries,
    )
    if not refinements.ranges:
        return None
    refined = msgspec.structs.replace(calibrated, scales=apply_refinements(scales, refinements))
    return _RecoveredScales(refined, len(refinements.ranges))


def _compare(
    method: str, plain: PlanSensitivity, other: PlanSensitivity, places: int
) -> RecoveryStep:
    """Return the step of a method, measured with the whole plans in INT8."""
    before_db = to_decibels(plain.measurement.measure(plain.full))
    after_db = to_decibels(other.measurement.measure(other.full))
    is_kept = after_db - before_db >= _LEAST_GAIN_DB
    return RecoveryStep(method, places, before_db, after_db, is_kept)


def _plan_partially(
    job: RecoveryJob, recovered: _Recovered, partial: PartialResult
) -> CalibratedPlan:
    """Return a plan again, with the sensitive layers in float; weights keep their scales."""
    calibrated = recovered.calibrated
    index, plan, ranges = calibrated.index, calibrated.plan, calibrated.ranges
    request = _repeat_request(plan, job.rules)
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
    if any(step.method == REFINE and step.is_kept for step in recovered.steps):
        scales = _keep_scales(scales, calibrated.scales)
    return CalibratedPlan(index, partial_plan, scales, ranges)


def _keep_scales(scales: Scales, refined: Scales) -> Scales:
    """Return scales with those of the same pairs that were refined before."""
    known = {(item.tensor, item.quantizer): item for item in refined.by_pair}
    by_pair = tuple(known.get((item.tensor, item.quantizer), item) for item in scales.by_pair)
    return msgspec.structs.replace(scales, by_pair=by_pair)


def _repeat_request(plan: Plan, rules: RuleSet) -> PlanRequest:
    """Return the request that a plan of a float model was made by."""
    return PlanRequest(
        rules=rules,
        targets=plan.targets,
        leave_float=plan.leave_float,
        allow_unmatched=True,
        profiles=plan.profiles,
        sensitive=plan.sensitive or (),
        float_type=FLOAT_TYPES[plan.float_type or FP32.name],
    )


def _find_obstacle(job: RecoveryJob) -> str:
    """Return why nothing is measured by default, "" where it is."""
    size = _count_weight_bytes(job.calibrated.index, job.calibrated.plan)
    most = _MOST_GUARDED_BYTES
    if job.observing.max_memory is not None:
        most = min(most, job.observing.max_memory // 8)
    if size <= most:
        return ""
    return (
        f"the guard did not run: it holds the weights ({format_gigabytes(size)}) three times. "
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
