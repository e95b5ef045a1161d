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
from qdq.rules.node_selection import glob_names, is_selection, list_selected, make_where
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

    `name` may also select several nodes: a glob, `op:OPERATOR` or `range:FIRST..LAST`. An edge that
    several rules decided has one explanation per rule. Raises UsageError for a name
    that is neither a node's nor a tensor's.
    """
    require_plan(plan)
    require_type(name, str, "name", "the name of a node or tensor")
    source = source_at_plan_opset(load(model), plan)
    index = GraphIndex(source)
    edges = _find_edges(index, name)
    sensitive = plan.sensitive or ()
    all_rules = with_leave_float(index, to_rule_set(rules), plan.leave_float, sensitive)
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
    """Return the edges into the nodes of a name, in all graphs, else those from its tensors.

    The name may also be a glob, an operator or a range, as `make_where` reads it.
    """
    for find in (_find_edges_into, _find_edges_from, _find_selected_edges):
        edges = find(index, name)
        if edges is not None:
            return edges
    hint = did_you_mean(name, _known_names(index)) or "."
    raise UsageError(f"{index.source.name}: the model has no node or tensor {name!r}{hint}")


def _find_edges_into(index: GraphIndex, name: str) -> tuple[Edge, ...] | None:
    """Return the edges into the nodes of a name; None where there are no such nodes."""
    edges: list[Edge] = []
    is_known = False
    for scope in index.scopes.values():
        is_known = is_known or name in scope.by_label
        for node in scope.nodes:
            if name in glob_names(scope, node):
                edges += scope.edges_into(node)
    return tuple(edges) if edges or is_known else None


def _find_edges_from(index: GraphIndex, name: str) -> tuple[Edge, ...] | None:
    """Return the edges from the tensors of a name; None where there are no such tensors."""
    edges: list[Edge] = []
    is_known = False
    for scope in index.scopes.values():
        is_known = is_known or _has_tensor(scope, name)
        edges += scope.edges_from(name)
    return tuple(edges) if is_known else None


def _find_selected_edges(index: GraphIndex, text: str) -> tuple[Edge, ...] | None:
    """Return the edges into the nodes that a text selects; None where it selects none."""
    if not is_selection(text):
        return None
    selected = list_selected(index, make_where(index, text, "NAME", allow_unmatched=False))
    if not selected:
        return None
    return tuple(edge for scope, node in selected for edge in scope.edges_into(node))


def _has_tensor(scope: GraphIndex, name: str) -> bool:
    return name in scope.consumers or name in scope.producers or name in scope.inputs


def _known_names(index: GraphIndex) -> list[str]:
    names: list[str] = []
    for scope in index.scopes.values():
        for label in scope.by_label:
            names.append(qualified_name(scope.path, label))
        names += scope.consumers
    return names
