"""The main pipeline in one call: plan, calibrate, insert pairs, check."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import onnx

from qdq.calibration.calibrator import gather_ranges
from qdq.calibration.methods import DEFAULT_METHOD, parse_method
from qdq.calibration.scale_choice import choose_scales, find_unfilled
from qdq.calibration.scales import Scales
from qdq.checking.checker import check, check_applied, recorded_sensitive_layers
from qdq.checking.finding import Finding
from qdq.data.feeds import DataLike
from qdq.graph.loader import load
from qdq.graph.onnx_checker import require_valid
from qdq.graph.shape_profiles import ProfilesLike
from qdq.graph.source import ModelLike, Source, light_copy
from qdq.observers.collection import DEFAULT_OBSERVING, CollectionJob, Observing
from qdq.pipeline.bias_recovery import correct_biases
from qdq.pipeline.bisection import BisectionResult
from qdq.pipeline.buildable import (
    make_build_function,
    search_buildable_plan,
)
from qdq.pipeline.float_cast import build_cast_models, cast_rewritten
from qdq.pipeline.float_options import FloatOptions, to_float_options
from qdq.pipeline.pair_locations import keep_locations
from qdq.pipeline.quantize_request import (
    FLOAT_WEIGHTS,
    BuildOptions,
    CalibrationOptions,
    QuantizeRequest,
    to_build_options,
    to_calibration_options,
    to_planning_options,
)
from qdq.pipeline.quantize_stages import CalibratedModel, PlannedModel, PreparedModel
from qdq.pipeline.recovery import recover_plan
from qdq.pipeline.recovery_job import RecoveryJob, RecoveryStep
from qdq.pipeline.recovery_options import DEFAULT_RECOVERY, Recovery
from qdq.pipeline.requantize import (
    KEEP,
    REPAIR,
    REPLACE,
    Existing,
    describe_existing,
    has_all_ranges,
    keep_existing_pairs,
    make_float_source,
    merge_own_ranges,
    require_mode,
)
from qdq.pipeline.requirements import require_build, require_placements
from qdq.pipeline.unfilled_tensors import (
    has_all_tensors,
    make_filled_request,
)
from qdq.pipeline.weight_storage import store_planned_weights
from qdq.planning.block_pairs import keep_block_pairs
from qdq.planning.decisions import Placement, Plan, SensitiveLayer
from qdq.planning.plan_opset import raise_for_cast
from qdq.planning.plan_request import PlanRequest, exact_globs
from qdq.planning.planner import find_quantized_nodes, plan_source
from qdq.precision.cast_model import CastReport
from qdq.quantized.model import QuantizedModel
from qdq.ranges.given_ranges import GivenRanges, GivenSummary, match_given_ranges
from qdq.ranges.known_ranges import RangesLike
from qdq.ranges.tensor_ranges import Ranges
from qdq.rewriting.inserter import apply_plan
from qdq.rules.rule_files import RulesLike, load_rules
from qdq.rules.shipped import default_rule_sets
from qdq.runtime.session import Progress
from qdq.sensitivity.partial_result import PartialResult
from qdq.sensitivity.plan_sensitivity import CalibratedPlan
from qdq.stage_log import timed_stage
from qdq.target import TargetsLike


class Quantized(msgspec.Struct, frozen=True):
    """A quantized model, and the results of the stages that made it."""

    #: The model with its pairs.
    model: onnx.ModelProto
    #: The float model that it was made from, at the opset that the plan needs.
    source: Source
    plan: Plan
    scales: Scales
    #: The findings of `check` in the result: none, unless a rule and the rewriter disagree.
    findings: tuple[Finding, ...]
    #: The nodes left in float so that the model builds; None where that was not requested.
    build_search: BisectionResult | None = None
    #: The ranges of the planned activations, observed or given.
    ranges: Ranges | None = None
    #: What happened to the quantization that the model had; None for a float model.
    existing: Existing | None = None
    #: What the guard or a budget measured, or why the guard did not run; None where it is off.
    partial: PartialResult | str | None = None
    #: The methods that were tried to recover accuracy in INT8.
    recovery: tuple[RecoveryStep, ...] = ()
    #: What became of the float part; None where it stays float32.
    cast: CastReport | None = None


def quantize(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    data: DataLike | None,
    *,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    method: str = DEFAULT_METHOD,
    weights: str | None = None,
    leave_float: str | Iterable[str] = (),
    batch: int | None = None,
    allow_unmatched: bool = False,
    progress: Progress | None = None,
    planned: Callable[[Plan], None] | None = None,
    until_it_builds: BuildOptions | bool | None = None,
    profiles: ProfilesLike = (),
    observing: Observing = DEFAULT_OBSERVING,
    given: RangesLike | None = None,
    existing: str = REPAIR,
    recovery: Recovery = DEFAULT_RECOVERY,
    store_weights: str = FLOAT_WEIGHTS,
    float_type: str | FloatOptions | None = None,
) -> Quantized:
    """Return the quantized copy of a model, with its plan, scales and findings.

    `existing` is "keep", "repair" or "replace"; pairs that stay keep their scales. `given` are
    known ranges. `planned` is called with the plan. `until_it_builds` leaves in float what does not
    build, `float_type` is its type. `store_weights` is "float", "quantized" or "gptq".
    """
    request = QuantizeRequest(
        model,
        existing,
        to_planning_options(rules, targets, leave_float, allow_unmatched, profiles),
        to_calibration_options(data, batch, method, weights, observing, progress, given),
        to_build_options(until_it_builds),
        recovery,
        planned,
        store_weights,
        to_float_options(float_type),
    )
    return run_request(request)


def run_request(request: QuantizeRequest) -> Quantized:
    """Run the phases of `quantize`, each on the results of those before it."""
    prepared, calibrated = plan_and_calibrate(request)
    calibrated = _recover(request, prepared, calibrated)
    return _rewrite(request, prepared, calibrated)


def plan_and_calibrate(request: QuantizeRequest) -> tuple[PreparedModel, CalibratedModel]:
    """Run the phases of `quantize` that end with the scales of the whole plan."""
    prepared = _prepare(request)
    planned = _make_plan(request, prepared)
    if request.planned:
        request.planned(planned.plan)
    return prepared, _calibrate(request, prepared, planned)


@timed_stage("preparing")
def _prepare(request: QuantizeRequest) -> PreparedModel:
    """Load the model, and read its pairs where it is quantized already."""
    require_mode(request.existing)
    float_type = request.floats.choose(request.planning.targets)
    source = raise_for_cast(load(request.model), float_type)
    rules = request.planning.rules
    known_ranges = request.calibration.known_ranges
    quantized_model = None
    sensitive: tuple[SensitiveLayer, ...] = ()
    if find_quantized_nodes(source):
        quantized_model = QuantizedModel(source)
        default_rules = default_rule_sets(source)
        source = make_float_source(quantized_model, request.existing)
        rules = rules or load_rules(default_rules)
        if request.existing != REPLACE:
            sensitive = recorded_sensitive_layers(quantized_model.original)
            known_ranges = merge_own_ranges(quantized_model, known_ranges)
    method = parse_method(request.calibration.method, request.calibration.weights)
    rules = rules or load_rules()
    return PreparedModel(source, quantized_model, rules, method, sensitive, known_ranges)


def _make_plan(request: QuantizeRequest, prepared: PreparedModel) -> PlannedModel:
    """Plan the float model; search for a plan that builds where that is requested."""
    options = request.planning
    plan_request = PlanRequest(
        rules=prepared.rules,
        targets=options.targets,
        leave_float=options.leave_float,
        allow_unmatched=options.allow_unmatched,
        profiles=options.profiles,
        plans_bfloat16=_has_bfloat16_layers(prepared),
        sensitive=prepared.sensitive,
        float_type=request.floats.choose(options.targets),
    )
    index, plan = plan_source(prepared.source, plan_request)
    if plan.placements:
        require_valid(prepared.source)
    planned = PlannedModel(index, plan)
    if request.build_options is not None:
        planned = _search_buildable(prepared, plan_request, planned, request)
    plan = _keep_pairs(request, prepared, planned.plan)
    require_placements(prepared, planned.index, plan)
    return msgspec.structs.replace(planned, plan=plan)


def _has_bfloat16_layers(prepared: PreparedModel) -> bool:
    quantized_model = prepared.quantized_model
    return quantized_model is not None and quantized_model.has_bfloat16_layers


def _keep_pairs(request: QuantizeRequest, prepared: PreparedModel, plan: Plan) -> Plan:
    """Return a plan with the pairs of a quantized model where they are, as far as they stay."""
    if prepared.quantized_model is None or request.existing == REPLACE:
        return plan
    plan = keep_locations(prepared.quantized_model, plan)
    if request.existing != KEEP:
        return keep_block_pairs(prepared.quantized_model, plan, prepared.rules)
    return keep_existing_pairs(prepared.quantized_model, plan)


def _search_buildable(
    prepared: PreparedModel,
    plan_request: PlanRequest,
    planned: PlannedModel,
    request: QuantizeRequest,
) -> PlannedModel:
    """Plan again, with the nodes in float that the compiler refuses."""
    index, plan = planned.index, planned.plan
    options = request.build_options or BuildOptions()
    build = make_build_function(index.source, plan.targets, options.shapes)
    build = build_cast_models(build, index.source, plan, prepared.rules, request.floats)
    build_search = search_buildable_plan(index, plan, prepared.rules, build, options.progress)
    refused_globs = exact_globs(build_search.groups)
    buildable_request = msgspec.structs.replace(
        plan_request,
        leave_float=(*plan_request.leave_float, *refused_globs),
        profiles=plan.profiles,
    )
    index, plan = plan_source(prepared.source, buildable_request)
    return PlannedModel(index, plan, build, build_search)


@timed_stage("calibrating")
def _calibrate(
    request: QuantizeRequest, prepared: PreparedModel, planned: PlannedModel
) -> CalibratedModel:
    """Compute the scales of the tensors that samples fill, the others left in float."""
    ranges, summary = _gather_ranges(request.calibration, prepared, planned)
    unfilled = tuple(find_unfilled(planned.plan, ranges, summary))
    tensors = sorted({placement.edge.qualified_tensor for placement in unfilled})
    if unfilled:
        planned = _leave_unfilled(request, prepared, planned, unfilled)
        if not has_all_tensors(planned.plan, ranges):
            ranges, summary = _gather_ranges(request.calibration, prepared, planned)
        summary = _match_again(prepared, planned, summary)
    scales = choose_scales(planned.index, planned.plan, ranges, prepared.method, summary)
    if tensors:
        scales = msgspec.structs.replace(scales, unfilled=tuple(tensors))
    return CalibratedModel(planned, scales, ranges, summary)


@timed_stage("measuring and recovering accuracy")
def _recover(
    request: QuantizeRequest, prepared: PreparedModel, calibrated: CalibratedModel
) -> CalibratedModel:
    """Recover accuracy by measurement, where samples are there for it."""
    calibration = request.calibration
    is_measured = request.is_measured(prepared.quantized_model is None)
    if not is_measured or calibration.data is None or not calibrated.planned.plan.placements:
        return calibrated
    planned, known_ranges = calibrated.planned, prepared.known_ranges
    plan = CalibratedPlan(planned.index, planned.plan, calibrated.scales, calibrated.ranges)
    job = RecoveryJob(
        plan,
        prepared.rules,
        prepared.method,
        known_ranges if isinstance(known_ranges, GivenRanges) else None,
        calibrated.summary,
        calibration.data,
        calibration.batch,
        calibration.observing,
        request.recovery,
    )
    recovered = recover_plan(job)
    result = recovered.calibrated
    require_placements(prepared, result.index, result.plan)
    planned = msgspec.structs.replace(planned, index=result.index, plan=result.plan)
    return msgspec.structs.replace(
        calibrated,
        planned=planned,
        scales=result.scales,
        partial=recovered.partial,
        recovery=recovered.steps,
    )


def _gather_ranges(
    options: CalibrationOptions, prepared: PreparedModel, planned: PlannedModel
) -> tuple[Ranges, GivenSummary | None]:
    """Return the ranges; the data is not read where a quantized model has all ranges."""
    index, plan = planned.index, planned.plan
    known_ranges = prepared.known_ranges
    data = options.data
    is_quantized = prepared.quantized_model is not None
    if is_quantized and known_ranges is not None and has_all_ranges(index, plan, known_ranges):
        data = None
    job = CollectionJob(index, plan, data, prepared.method.needs_histogram, options.batch)
    return gather_ranges(job, options.observing, options.progress, known_ranges)


def _leave_unfilled(
    request: QuantizeRequest,
    prepared: PreparedModel,
    planned: PlannedModel,
    unfilled: tuple[Placement, ...],
) -> PlannedModel:
    """Plan again, with the nodes in float that read a tensor without a range."""
    plan_request = make_filled_request(
        planned.plan, prepared.rules, unfilled, _has_bfloat16_layers(prepared)
    )
    index, plan = plan_source(prepared.source, plan_request)
    plan = _keep_pairs(request, prepared, plan)
    return msgspec.structs.replace(planned, index=index, plan=plan)


def _match_again(
    prepared: PreparedModel, planned: PlannedModel, summary: GivenSummary | None
) -> GivenSummary | None:
    """Return which given ranges apply to a smaller plan, None where none are given."""
    known_ranges = prepared.known_ranges
    if summary is None or not isinstance(known_ranges, GivenRanges):
        return None
    return match_given_ranges(planned.index, planned.plan, known_ranges)


@timed_stage("rewriting")
def _rewrite(
    request: QuantizeRequest, prepared: PreparedModel, calibrated: CalibratedModel
) -> Quantized:
    """Insert the pairs, check the result, and build it where that is requested."""
    planned, scales, plan = calibrated.planned, calibrated.scales, calibrated.planned.plan
    rewritten = apply_plan(planned.index, plan, scales)
    stored, weight_steps = store_planned_weights(request, calibrated, rewritten)
    is_float = prepared.quantized_model is None
    corrected, steps = correct_biases(request, calibrated, stored, is_float)
    source = prepared.source
    cast_model = cast_rewritten(request, calibrated, prepared.rules, corrected)
    model = corrected if cast_model is None else cast_model.model
    if planned.build is not None:
        require_build(source, planned.build, corrected)
    existing = None
    if prepared.quantized_model is not None:
        result = QuantizedModel(Source(source.path, model, source.digest))
        existing = describe_existing(
            request.existing, prepared.quantized_model, plan, scales, result
        )
    return Quantized(
        model=model,
        source=planned.index.source,
        plan=plan,
        scales=scales,
        findings=_check_result(prepared, planned, model),
        build_search=planned.build_search,
        ranges=calibrated.ranges,
        existing=existing,
        partial=calibrated.partial,
        recovery=(*calibrated.recovery, *weight_steps, *steps),
        cast=None if cast_model is None else cast_model.report,
    )


@timed_stage("checking")
def _check_result(
    prepared: PreparedModel, planned: PlannedModel, model: onnx.ModelProto
) -> tuple[Finding, ...]:
    """Return the findings about the result.

    It is planned again where rules did not decide alone: where pairs were there before, and where a
    cast changed tensors.
    """
    source = prepared.source
    written = Source(source.path, light_copy(model), source.digest)
    if prepared.quantized_model is None and not planned.plan.float_type:
        return check_applied(written, planned.index, planned.plan, prepared.rules)
    return check(
        written,
        rules=prepared.rules,
        targets=planned.plan.targets,
        weights=False,
    )
