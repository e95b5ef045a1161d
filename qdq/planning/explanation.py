"""Why an edge is quantized or not: every decision about a node, or about the readers of a tensor."""

from __future__ import annotations

import msgspec

from qdq.errors import UsageError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.planning.decisions import NO_RULE, Plan
from qdq.planning.planner import source_at_plan_opset, with_leave_float
from qdq.rules.matcher import glob_names
from qdq.rules.rule import Rule, RuleSet


class Explanation(msgspec.Struct, frozen=True):
    """The decision about one edge, with the rule that made it."""

    edge: Edge
    #: ``quantize (FORMAT)`` or ``leave in float``.
    decision: str
    rule: str
    says: str
    because: str
    see: str
    evidence: str = ""


def explain(model: ModelLike, plan: Plan, rules: RuleSet, name: str) -> tuple[Explanation, ...]:
    """Return one explanation for each input slot of the node, or each reader of the tensor, that `name` names.

    Raises UsageError where the graph has neither.
    """
    index = GraphIndex(source_at_plan_opset(load(model), plan))
    edges = _edges(index, name)
    known = {r.name: r for r in with_leave_float(rules, plan.leave_float).rules}
    placed = {p.edge: p for p in plan.placements}
    left = {item.edge: item for item in plan.left_float}
    explained = []
    for edge in edges:
        if edge in placed:
            placement = placed[edge]
            explained += [
                _by_rule(edge, f"quantize ({placement.quantizer})", known[rule])
                for rule in placement.because
            ]
        elif edge in left and left[edge].because in known:
            explained.append(_by_rule(edge, "leave in float", known[left[edge].because]))
        else:
            why = left[edge].reason if edge in left else NO_RULE
            explained.append(
                Explanation(
                    edge, "leave in float", left[edge].because if edge in left else "", why, "", ""
                )
            )
    return tuple(explained)


def _edges(index: GraphIndex, name: str) -> tuple[Edge, ...]:
    scopes = index.scopes.values()
    of_nodes = [
        scope.edge(node, slot)
        for scope in scopes
        for node in scope.nodes
        if name in glob_names(scope, node)
        for slot, t in enumerate(node.inputs)
        if t
    ]
    if of_nodes or any(name in scope.by_label for scope in scopes):
        return tuple(of_nodes)
    if any(
        name in known
        for scope in scopes
        for known in (scope.consumers, scope.producers, scope.inputs)
    ):
        return tuple(edge for scope in scopes for edge in scope.edges_from(name))
    known = [
        word
        for scope in scopes
        for word in (
            *(qualified_name(scope.path, label) for label in scope.by_label),
            *scope.consumers,
        )
    ]
    raise UsageError(
        f"{index.source.name}: has no node or tensor {name!r}{did_you_mean(name, known)}"
    )


def _by_rule(edge: Edge, decision: str, rule: Rule) -> Explanation:
    return Explanation(edge, decision, rule.name, rule.says, rule.because, rule.see, rule.evidence)
