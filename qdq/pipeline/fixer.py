"""Fixes of a quantized model from its own scales alone, as `check --fix` writes them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import onnx

from qdq.calibration.calibrator import compute_scales
from qdq.calibration.methods import parse_method
from qdq.checking.checker import read_plan_request
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.source import ModelLike, Source
from qdq.observers.collection import CollectionJob
from qdq.pipeline.pair_locations import PairReach, keep_locations
from qdq.pipeline.requantize import (
    REPAIR,
    Existing,
    describe_existing,
    make_existing_placement,
    make_float_source,
    merge_own_ranges,
)
from qdq.planning.block_pairs import keep_block_pairs
from qdq.planning.decisions import Placement, Plan, sort_placements
from qdq.planning.pair_dependencies import remove_placements
from qdq.planning.planner import plan_source
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.symmetry import exact_weight_amax
from qdq.ranges.given_ranges import GivenRanges, GivenSummary, match_given_ranges
from qdq.ranges.given_weights import make_weight_key
from qdq.rewriting.inserter import apply_plan
from qdq.rules.rule_files import RulesLike
from qdq.target import TargetsLike

#: Why an edge stays in float that the rules quantize.
UNKNOWN_RANGE = "no pair of the model has its range; 'qdq quantize' with data calibrates it"


class Fixed(msgspec.Struct, frozen=True):
    """A fixed model and the changes in it."""

    #: The model with its pairs.
    model: onnx.ModelProto
    #: Its float model.
    source: Source
    #: What happened to the quantization that it had.
    existing: Existing


def fix(
    model: ModelLike,
    *,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    leave_float: str | Iterable[str] | None = None,
) -> Fixed | None:
    """Return a quantized model in plain symmetric pairs at the edges where the rules place them.

    Returns None for a model without pairs. No scale is invented. A missing pair is added where
    another pair on the same tensor has its range, or a pair on a tensor that holds all of its
    values. Otherwise it is left out, together with the pairs that depend on it. The pairs that
    the model has and the rules place stay. So do those whose values reach an edge that the rules
    quantize and that gets no pair; None where one of these has a computed scale. `rules`,
    `targets` and `leave_float` default as for `check`. Raises ModelError for a model that has no
    such form.
    """
    quantized_model = QuantizedModel(model)
    if not quantized_model.edges and not quantized_model.converted:
        return None
    source = make_float_source(quantized_model, REPAIR)
    own_ranges = merge_own_ranges(quantized_model)
    request = read_plan_request(
        quantized_model, rules=rules, targets=targets, leave_float=leave_float
    )
    index, full_plan = plan_source(source, request)
    full_plan = keep_block_pairs(quantized_model, full_plan, request.rules)
    plan = _remove_unknown_ranges(index, full_plan, quantized_model, own_ranges)
    last_pairs = _find_last_pairs(quantized_model, full_plan, plan)
    if any(pair.scales is None for pair in last_pairs):
        return None
    plan = _add_pairs(quantized_model, plan, last_pairs, own_ranges)
    plan = keep_locations(quantized_model, plan)
    job = CollectionJob(index, plan, None, full=False)
    scales, _ = compute_scales(job, parse_method("max"), known_ranges=own_ranges)
    rewritten = apply_plan(index, plan, scales)
    result = QuantizedModel(Source(source.path, rewritten, source.digest))
    existing = describe_existing(REPAIR, quantized_model, plan, scales, result)
    return Fixed(rewritten, index.source, existing)


def _remove_unknown_ranges(
    index: GraphIndex, plan: Plan, quantized_model: QuantizedModel, own_ranges: GivenRanges
) -> Plan:
    """Return a plan without the pairs whose range is unknown, and without those that need them.

    Pairs that the model has stay, except on weights that would be rounded a second time.
    """
    summary = match_given_ranges(index, plan, own_ranges)
    removed = _find_unknown_placements(index, plan, summary)
    if not removed:
        return plan
    smaller_plan = remove_placements(index, plan, removed, UNKNOWN_RANGE)
    kept_edges = {placement.edge for placement in smaller_plan.placements}
    kept_edges |= _find_kept_edges(plan, quantized_model, summary, removed)
    placements = [p for p in plan.placements if p.edge in kept_edges]
    left_float = [item for item in smaller_plan.left_float if item.edge not in kept_edges]
    return msgspec.structs.replace(
        smaller_plan, placements=tuple(placements), left_float=tuple(left_float)
    )


def _find_unknown_placements(
    index: GraphIndex, plan: Plan, summary: GivenSummary
) -> set[Placement]:
    """Return the placements of activations that have no range and are no constants."""
    missing = set(summary.missing)
    placements = set()
    for placement in plan.placements:
        edge = placement.edge
        if not placement.quantizer.calibrated or edge.qualified_tensor not in missing:
            continue
        if not index.scope(edge).is_constant(edge.tensor):
            placements.add(placement)
    return placements


def _find_kept_edges(
    plan: Plan, quantized_model: QuantizedModel, summary: GivenSummary, removed: set[Placement]
) -> set[Edge]:
    """Return the edges whose pair the model has and keeps: activations, and exact weights."""
    existing_edges = {quantized_edge.edge for quantized_edge in quantized_model.edges}
    weight_amax = summary.weight_amax
    edges = set()
    for placement in plan.placements:
        edge, quantizer = placement.edge, placement.quantizer
        if edge not in existing_edges or placement in removed:
            continue
        if quantizer.calibrated or make_weight_key(placement) in weight_amax:
            edges.add(edge)
    return edges


def _find_last_pairs(
    quantized_model: QuantizedModel, full_plan: Plan, plan: Plan
) -> list[QuantizedEdge]:
    """Return the pairs of a model that a plan lacks although it leaves out an edge they reach.

    `full_plan` holds every edge that the rules quantize. Without such a pair, a layer that they
    want in INT8 would have none. Left out are weights that would be rounded a second time: they
    hold the values of their integers without a pair.
    """
    planned_edges = {placement.edge for placement in plan.placements}
    left_out = {placement.edge for placement in full_plan.placements} - planned_edges
    if not left_out:
        return []
    index = quantized_model.index
    reach = PairReach(index)
    last_pairs: list[QuantizedEdge] = []
    for pair in quantized_model.edges:
        edge = pair.edge
        if edge in planned_edges or left_out.isdisjoint(reach.find_edges(edge)):
            continue
        is_weight = index.scope(edge).is_constant(edge.tensor)
        if not is_weight or exact_weight_amax(pair) is not None:
            last_pairs.append(pair)
    return last_pairs


def _has_range(pair: QuantizedEdge, own_ranges: GivenRanges) -> bool:
    """Whether a pair's scales are numbers above 0."""
    tensors = {item.tensor for item in own_ranges.by_tensor}
    tensors.update(item.tensor for item in own_ranges.weights)
    return pair.edge.qualified_tensor in tensors


def _add_pairs(
    quantized_model: QuantizedModel,
    plan: Plan,
    pairs: list[QuantizedEdge],
    own_ranges: GivenRanges,
) -> Plan:
    """Return a plan with more pairs, where a model has them with a range."""
    placements = {placement.edge: placement for placement in plan.placements}
    for pair in pairs:
        if _has_range(pair, own_ranges):
            placements[pair.edge] = make_existing_placement(quantized_model, pair)
    return msgspec.structs.replace(
        plan,
        placements=sort_placements(quantized_model.index, placements),
        left_float=tuple(item for item in plan.left_float if item.edge not in placements),
    )
