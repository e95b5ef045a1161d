"""The main job in one call: plan, calibrate, apply, check and, where asked, validate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
import onnx

from qdq.calibration.calibrator import KnownRanges, compute_scales
from qdq.calibration.methods import DEFAULT_METHOD, parse_method
from qdq.calibration.scales import Scales
from qdq.checking.checker import check
from qdq.checking.finding import Finding
from qdq.data.feeds import DataLike
from qdq.errors import ModelError
from qdq.graph.loader import load
from qdq.graph.shape_profiles import Profile
from qdq.graph.source import ModelLike, Source, light_copy
from qdq.observers.collection import DEFAULT_OBSERVING, CollectionJob, Observing
from qdq.pipeline.bisection import BisectionResult
from qdq.pipeline.buildable import exact_globs, make_build_function, search_buildable_plan
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
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import find_quantized_nodes, plan_source
from qdq.quantized.model import QuantizedModel
from qdq.ranges.tensor_ranges import Ranges
from qdq.rewriting.inserter import apply_plan
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import default_rule_sets
from qdq.runtime.session import Progress
from qdq.target import Target

#: Where to look if the rules quantize nothing, by whether the model is float.
_WAY_OUT = {
    True: "'qdq explain' says why",
    False: "'qdq check' says what is in it, and 'qdq strip' gives the float model back",
}


class BuildOptions(msgspec.Struct, frozen=True):
    """How the plan is built for `until_it_builds`."""

    #: Shapes of inputs by name; dynamic dimensions of those not named become 1.
    shapes: Mapping[str, tuple[int, ...]] = {}
    #: Called after each build with the number done.
    progress: Progress | None = None


class Quantized(msgspec.Struct, frozen=True):
    """A quantized model and everything that led to it."""

    #: The model with its pairs.
    model: onnx.ModelProto
    #: The float model it was made from, at the opset that the plan needs.
    source: Source
    plan: Plan
    scales: Scales
    #: What `check` finds in the result: nothing, unless a rule and the rewriter disagree.
    findings: tuple[Finding, ...]
    #: What was left in float so that it builds; None where that was not asked for.
    build_search: BisectionResult | None = None
    #: What the planned activations were seen to hold, or are said to.
    ranges: Ranges | None = None
    #: What became of the quantization that the model had; None for a float model.
    existing: Existing | None = None


def quantize(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    data: DataLike | None,
    *,
    rules: RuleSet | None = None,
    targets: Iterable[Target] = (),
    method: str = DEFAULT_METHOD,
    weights: str | None = None,
    leave_float: Iterable[str] = (),
    batch: int | None = None,
    allow_unmatched: bool = False,
    progress: Progress | None = None,
    planned: Callable[[Plan], None] | None = None,
    until_it_builds: BuildOptions | None = None,
    profiles: Iterable[Profile] = (),
    observing: Observing = DEFAULT_OBSERVING,
    given: KnownRanges | None = None,
    existing: str = REPAIR,
) -> Quantized:
    """Return a model's quantized copy with its plan, scales and findings.

    Of a model that is quantized already the pairs stay in their place (``existing="keep"``) or are made what the rules
    want (``"repair"``), with the scales that they have, and with data only where there is none; ``"replace"`` takes them out first.

    `given` holds ranges from elsewhere, as `calibrate` takes them. `planned` is called with the plan before
    calibration starts. `until_it_builds` compiles the plan for its rtx targets first, and leaves in float
    what the compiler refuses. Raises ModelError, RuleError,
    DataError or UsageError, as the stages do; the model that is given is never changed.
    """
    require_mode(existing)
    source = load(model)
    had = QuantizedModel(source) if find_quantized_nodes(source) else None
    if had is not None:
        source, rules = (
            make_float_source(had, existing),
            rules or load_rules(default_rule_sets(source)),
        )
        given = given if existing == REPLACE else merge_own_ranges(had, given)
    way, rules = parse_method(method, weights), rules or load_rules()
    index, plan = plan_source(
        source,
        PlanRequest(rules, tuple(targets), tuple(leave_float), allow_unmatched, tuple(profiles)),
    )
    found, build = None, None
    if until_it_builds is not None:
        build = make_build_function(index.source, plan.targets, until_it_builds.shapes)
        found = search_buildable_plan(index, plan, rules, build, until_it_builds.progress)
        index, plan = plan_source(
            source,
            PlanRequest(
                rules,
                tuple(targets),
                (*leave_float, *exact_globs(found.groups)),
                allow_unmatched,
                plan.profiles,
            ),
        )
    if had is not None and existing == KEEP:
        plan = keep_existing_pairs(had, plan)
    _require_placements(source, plan, _WAY_OUT[had is None])
    if planned:
        planned(plan)
    needed = (
        None
        if had is not None and given is not None and has_all_ranges(index, plan, given)
        else data
    )
    scales, ranges = compute_scales(
        CollectionJob(index, plan, needed, way.needs_histogram, batch),
        way,
        observing,
        progress,
        given,
    )
    rewritten = apply_plan(index, plan, scales)
    findings = check(
        Source(source.path, light_copy(rewritten), source.digest),
        rules=rules,
        targets=plan.targets,
        leave_float=plan.leave_float,
        weights=False,
    )
    if build is not None and (refusal := build(rewritten)):
        raise ModelError(
            f"{source.path or source.name}: builds with other scales, but not with the calibrated ones: {refusal.message}; try another --method"
        )
    became = (
        describe_existing(
            existing,
            had,
            plan,
            scales,
            QuantizedModel(Source(source.path, rewritten, source.digest)),
        )
        if had is not None
        else None
    )
    return Quantized(rewritten, index.source, plan, scales, findings, found, ranges, became)


def _require_placements(source: Source, plan: Plan, way_out: str) -> None:
    """Raise ModelError for a plan with nothing in it."""
    if not plan.placements:
        wanted = ", ".join(map(str, plan.targets))
        raise ModelError(
            f"{source.path or source.name}: the rules {', '.join(plan.rule_sets)} quantize nothing in it for {wanted}; {way_out}"
        )
