"""Mending a quantized model with nothing but what it says itself: what `check --fix` writes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import onnx

from qdq.calibration.calibrator import compute_scales
from qdq.calibration.methods import parse_method
from qdq.checking.checker import read_plan_request
from qdq.graph.index import GraphIndex
from qdq.graph.source import ModelLike, Source
from qdq.observers.collection import CollectionJob
from qdq.pipeline.requantize import (
    REPAIR,
    Existing,
    describe_existing,
    make_float_source,
    merge_own_ranges,
)
from qdq.planning.decisions import Plan
from qdq.planning.pair_dependencies import remove_placements
from qdq.planning.planner import plan_source
from qdq.quantized.model import QuantizedModel
from qdq.ranges.given_ranges import GivenRanges, match_given_ranges
from qdq.rewriting.inserter import apply_plan
from qdq.rules.rule import RuleSet
from qdq.target import Target

#: Why an edge stays in float that the rules want quantized.
UNKNOWN_RANGE = "no pair at hand says its range; 'qdq quantize' with data calibrates it"


class Fixed(msgspec.Struct, frozen=True):
    """A mended model and what was changed in it."""

    model: onnx.ModelProto
    #: Its float model.
    source: Source
    existing: Existing


def fix(
    model: ModelLike,
    *,
    rules: RuleSet | None = None,
    targets: Iterable[Target] = (),
    leave_float: Iterable[str] | None = None,
) -> Fixed | None:
    """Return a quantized model in plain symmetric pairs where the rules want them; None for a model without any.

    No scale is invented: a pair that is missing is added where another pair on the same tensor says its range, or one on
    a tensor that holds all of its values, and otherwise left out together with what makes no sense without it. The pairs
    that the model has and the rules want stay. What is not given is as for `check`. Raises ModelError for a model that cannot be read so.
    """
    had = QuantizedModel(model)
    if not had.edges and not had.converted:
        return None
    source, own = make_float_source(had, REPAIR), merge_own_ranges(had)
    request = read_plan_request(had.original, rules=rules, targets=targets, leave_float=leave_float)
    index, plan = plan_source(source, request)
    plan = _with_known_ranges(index, plan, had, own)
    scales, _ = compute_scales(
        CollectionJob(index, plan, None, full=False), parse_method("max"), given=own
    )
    rewritten = apply_plan(index, plan, scales)
    result = QuantizedModel(Source(source.path, rewritten, source.digest))
    return Fixed(rewritten, index.source, describe_existing(REPAIR, had, plan, scales, result))


def _with_known_ranges(
    index: GraphIndex, plan: Plan, had: QuantizedModel, own: GivenRanges
) -> Plan:
    """Return a plan without the pairs whose range nothing says, and without those that make no sense without these.

    Those that are there already stay, but for weights that would be rounded a second time.
    """
    edges, taken = (
        {p.edge.qualified_tensor: p.edge for p in plan.placements},
        match_given_ranges(index, plan, own),
    )
    unknown = {
        read
        for read in taken.missing
        if not index.scope(edges[read]).is_constant(edges[read].tensor)
    }
    unwanted = {
        p for p in plan.placements if p.quantizer.calibrated and p.edge.qualified_tensor in unknown
    }
    if not unwanted:
        return plan
    there = {quantized.edge for quantized in had.edges}
    exact = taken.weight_amax.keys()
    fewer = remove_placements(index, plan, unwanted, UNKNOWN_RANGE)
    kept = {p.edge for p in fewer.placements} | {
        p.edge
        for p in plan.placements
        if p.edge in there
        and p not in unwanted
        and (p.quantizer.calibrated or (p.edge.qualified_tensor, p.quantizer.axis) in exact)
    }
    return msgspec.structs.replace(
        fewer,
        placements=tuple(p for p in plan.placements if p.edge in kept),
        left_float=tuple(item for item in fewer.left_float if item.edge not in kept),
    )
