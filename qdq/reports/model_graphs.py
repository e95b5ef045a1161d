"""The networks of pages: of a plan that was applied, of a quantized model, of a plan alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from qdq.checking.checker import read_plan_request
from qdq.errors import QdqError
from qdq.graph.float_types import FP32
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.source import ModelLike, Source
from qdq.pipeline.quantize_model import Quantized
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index, plan_source, with_leave_float
from qdq.precision.cast_model import CastReport
from qdq.quantized.model import QuantizedModel
from qdq.reports.edge_decisions import (
    EdgeDecision,
    quote_rules,
    read_pair_decisions,
    read_plan_decisions,
)
from qdq.reports.page_graph import GraphContent, PageGraph, make_graph
from qdq.rules.rule import Rule, RuleSet

_MISSING = "The rules request a pair here, and the model has none."


class NodeFacts(msgspec.Struct, frozen=True):
    """What is known about nodes beyond the decisions about their edges, by label."""

    #: What was measured, found or changed, one sentence each.
    notes: Mapping[str, Sequence[str]] = msgspec.field(default_factory=dict)
    #: Signal-to-noise ratios in dB.
    snr_db: Mapping[str, float] = msgspec.field(default_factory=dict)
    #: What the ratios are.
    snr_title: str = ""


NO_FACTS = NodeFacts()


def graph_quantized(
    result: Quantized, rules: RuleSet, cast: CastReport | None, facts: NodeFacts = NO_FACTS
) -> PageGraph | None:
    """Return the network that `quantize` quantized, with its plan and scales."""
    plan = result.plan
    index = GraphIndex(result.source)
    all_rules = with_leave_float(index, rules, plan.leave_float, plan.sensitive or ())
    decisions = read_plan_decisions(plan, result.scales)
    content = _make_content(index, decisions, all_rules.rules, facts)
    if cast is not None:
        kept = frozenset(node.node for node in cast.plan.kept)
        content = msgspec.structs.replace(content, float_type=cast.plan.to, kept_fp32=kept)
    return make_graph(content)


def graph_plan(
    source: Source, request: PlanRequest, facts: NodeFacts = NO_FACTS
) -> PageGraph | None:
    """Return the network of a float model with the plan that is made for it."""
    index, plan = plan_source(source, request)
    all_rules = with_leave_float(index, request.rules, plan.leave_float, plan.sensitive or ())
    decisions = read_plan_decisions(plan, None)
    return make_graph(_make_content(index, decisions, all_rules.rules, facts))


def graph_float(
    source: Source, to: str, kept: Iterable[str], facts: NodeFacts = NO_FACTS
) -> PageGraph | None:
    """Return the network of a float model whose nodes become a type, but for those kept in FP32."""
    content = _make_content(GraphIndex(source), {}, (), facts)
    content = msgspec.structs.replace(content, float_type=to, kept_fp32=frozenset(kept))
    return make_graph(content)


def graph_model(model: ModelLike, facts: NodeFacts = NO_FACTS) -> PageGraph | None:
    """Return the network of a model with the pairs that it has, and the plan for the other edges.

    None where the model cannot be read as a Q/DQ model.
    """
    try:
        quantized = QuantizedModel(model)
        decisions = read_pair_decisions(quantized)
        rules = _add_float_decisions(quantized, decisions)
        return make_graph(_make_content(quantized.index, decisions, rules, facts))
    except QdqError:
        return None


def _add_float_decisions(
    quantized: QuantizedModel, decisions: dict[Edge, EdgeDecision]
) -> tuple[Rule, ...]:
    """Add what the plan decides about edges without a pair, and return the rules.

    Nothing is added where no plan can be made.
    """
    try:
        request = read_plan_request(quantized)
        plan = plan_index(quantized.index, request)
    except QdqError:
        return ()
    for edge, planned in read_plan_decisions(plan, None).items():
        is_missing = bool(planned.type)
        decision = EdgeDecision("", "", planned.because, _MISSING) if is_missing else planned
        decisions.setdefault(edge, decision)
    index, sensitive = quantized.index, plan.sensitive or ()
    return with_leave_float(index, request.rules, plan.leave_float, sensitive).rules


def _make_content(
    index: GraphIndex,
    decisions: Mapping[Edge, EdgeDecision],
    rules: Iterable[Rule],
    facts: NodeFacts,
) -> GraphContent:
    return GraphContent(
        index,
        decisions,
        quote_rules(rules, decisions),
        facts.notes,
        facts.snr_db,
        facts.snr_title,
        FP32.name,
    )
