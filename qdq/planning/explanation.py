"""Explanations: the decision and the rule of each edge of a node, or of a tensor's readers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from qdq.arguments import require_type
from qdq.errors import UsageError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.planning.decisions import NO_RULE, LeftFloat, Placement, Plan
from qdq.planning.plan_edits import require_plan
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.planning.planner import with_leave_float
from qdq.rules.matcher import glob_names
from qdq.rules.rule import Rule
from qdq.rules.rule_files import RulesLike, to_rule_set

_LEAVE_IN_FLOAT = "leave in float"


class Explanation(msgspec.Struct, frozen=True):
    """The decision about one edge, with the rule that decided it."""

    edge: Edge
    #: ``quantize (FORMAT)`` or ``leave in float``.
    decision: str
    #: Name of the rule, empty where none decided.
    rule: str
    #: The rule in a sentence.
    says: str
    #: Its reason.
    because: str
    #: A document or issue about it.
    see: str
    #: A measurement.
    evidence: str = ""


def explain(model: ModelLike, plan: Plan, rules: RulesLike, name: str) -> tuple[Explanation, ...]:
    """Return the explanations for a node's inputs or a tensor's readers, by their name.

    An edge that several rules decided has one explanation per rule. Raises UsageError for a name
    that is neither a node's nor a tensor's.
    """
    require_plan(plan)
    require_type(name, str, "name", "the name of a node or tensor")
    source = source_at_plan_opset(load(model), plan)
    index = GraphIndex(source)
    edges = _find_edges(index, name)
    all_rules = with_leave_float(to_rule_set(rules), plan.leave_float, plan.sensitive or ())
    rules_by_name = {rule.name: rule for rule in all_rules.rules}
    _require_rules(plan, rules_by_name)
    placed = {placement.edge: placement for placement in plan.placements}
    left_float = {item.edge: item for item in plan.left_float}
    explanations: list[Explanation] = []
    for edge in edges:
        if edge in placed:
            explanations += _explain_placement(placed[edge], rules_by_name)
        else:
            item = left_float.get(edge)
            explanation = _explain_float(edge, item, rules_by_name)
            explanations.append(explanation)
    return tuple(explanations)


def _require_rules(plan: Plan, rules: Mapping[str, Rule]) -> None:
    """Raise UsageError where rules lack one that decided an edge of a plan."""
    for placement in plan.placements:
        for name in placement.because:
            if name not in rules:
                raise UsageError(
                    f"rules: the plan was made by the rule {name!r}, which is not among them. "
                    f"Pass those of the plan: {', '.join(plan.rule_sets)}."
                )


def _explain_placement(placement: Placement, rules: dict[str, Rule]) -> list[Explanation]:
    decision = f"quantize ({placement.quantizer})"
    explanations: list[Explanation] = []
    for name in placement.because:
        explanation = _quote_rule(placement.edge, decision, rules[name])
        explanations.append(explanation)
    return explanations


def _explain_float(edge: Edge, item: LeftFloat | None, rules: dict[str, Rule]) -> Explanation:
    if item is None:
        return Explanation(edge, _LEAVE_IN_FLOAT, "", NO_RULE, "", "")
    if item.because in rules:
        explanation = _quote_rule(edge, _LEAVE_IN_FLOAT, rules[item.because])
        return msgspec.structs.replace(explanation, says=item.reason)
    return Explanation(edge, _LEAVE_IN_FLOAT, item.because, item.reason, "", "")


def _quote_rule(edge: Edge, decision: str, rule: Rule) -> Explanation:
    return Explanation(edge, decision, rule.name, rule.says, rule.because, rule.see, rule.evidence)


def _find_edges(index: GraphIndex, name: str) -> tuple[Edge, ...]:
    """Return the edges into the nodes of a name, in all graphs, else those from its tensors."""
    edges: list[Edge] = []
    is_known = False
    for scope in index.scopes.values():
        if name in scope.by_label:
            is_known = True
        for node in scope.nodes:
            if name in glob_names(scope, node):
                edges += scope.edges_into(node)
    if edges or is_known:
        return tuple(edges)
    for scope in index.scopes.values():
        if _has_tensor(scope, name):
            is_known = True
        edges += scope.edges_from(name)
    if is_known:
        return tuple(edges)
    known_names = _known_names(index)
    hint = did_you_mean(name, known_names) or "."
    raise UsageError(f"{index.source.name}: the model has no node or tensor {name!r}{hint}")


def _has_tensor(scope: GraphIndex, name: str) -> bool:
    return name in scope.consumers or name in scope.producers or name in scope.inputs


def _known_names(index: GraphIndex) -> list[str]:
    names: list[str] = []
    for scope in index.scopes.values():
        for label in scope.by_label:
            names.append(qualified_name(scope.path, label))
        names += scope.consumers
    return names
