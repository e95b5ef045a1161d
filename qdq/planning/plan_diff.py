"""Differences between two plans: pairs gained and lost, formats, reasons and scale groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from qdq.graph.float_types import FP32
from qdq.graph.index import Edge
from qdq.planning.decisions import LeftFloat, Placement, Plan, ScaleGroup

_Decision = Placement | LeftFloat

#: Graph, node and slot.
_Location = tuple[str, str, int]
_Decisions = dict[_Location, _Decision]


class EdgeChange(msgspec.Struct, frozen=True):
    """One edge about which two plans differ."""

    #: ``gained`` or ``lost`` for a pair, ``format`` for another number format,
    #: ``reason`` for the same decision by other rules.
    kind: str
    edge: Edge
    #: The decision of the older plan, "" where it has none about this edge.
    old: str
    #: The same in the newer plan.
    new: str


class PlanDiff(msgspec.Struct, frozen=True):
    """All differences of a plan from an older one; edges are matched by node and slot."""

    #: Whether both are for the same model, by digest.
    same_model: bool
    #: Targets, rule sets and globs that differ: name, old, new.
    context: tuple[tuple[str, str, str], ...]
    edges: tuple[EdgeChange, ...]
    groups_gained: tuple[ScaleGroup, ...]
    groups_lost: tuple[ScaleGroup, ...]
    #: Nodes that only the newer plan keeps in FP32.
    kept_gained: tuple[str, ...] = ()
    #: Nodes that only the older plan keeps in FP32.
    kept_lost: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        groups = self.groups_gained or self.groups_lost
        return bool(self.edges or groups or self.kept_gained or self.kept_lost)


def diff_plans(old: Plan, new: Plan) -> PlanDiff:
    """Return the changes from an older plan to a newer one, perhaps of another export."""
    old_decisions = _decisions_by_location(old)
    new_decisions = _decisions_by_location(new)
    new_names = _match_tensor_names(old_decisions, new_decisions)
    old_groups = {_rename_tensors(group, new_names) for group in old.scale_groups}
    context = _context_changes(old, new)
    edges = _edge_changes(old_decisions, new_decisions)
    groups_gained = (group for group in new.scale_groups if group not in old_groups)
    groups_lost = old_groups.difference(new.scale_groups)
    return PlanDiff(
        same_model=old.digest == new.digest,
        context=tuple(context),
        edges=tuple(edges),
        groups_gained=tuple(groups_gained),
        groups_lost=tuple(sorted(groups_lost)),
        kept_gained=_list_kept_only_by(new, old),
        kept_lost=_list_kept_only_by(old, new),
    )


def _list_kept_only_by(plan: Plan, other: Plan) -> tuple[str, ...]:
    """Return the nodes that one plan keeps in FP32 and the other does not."""
    others = {kept.node for kept in other.keep_fp32 or ()}
    return tuple(kept.node for kept in plan.keep_fp32 or () if kept.node not in others)


def _decisions_by_location(plan: Plan) -> _Decisions:
    decisions: _Decisions = {}
    listed: list[_Decision] = [*plan.placements, *plan.left_float]
    for decision in listed:
        edge = decision.edge
        decisions[edge.graph, edge.node, edge.slot] = decision
    return decisions


def _match_tensor_names(old_decisions: _Decisions, new_decisions: _Decisions) -> dict[str, str]:
    """Return the new name of each tensor by its old one, where both plans decide about an edge."""
    names = {}
    for location, decision in old_decisions.items():
        if location in new_decisions:
            new_edge = new_decisions[location].edge
            names[decision.edge.qualified_tensor] = new_edge.qualified_tensor
    return names


def _rename_tensors(group: ScaleGroup, names: dict[str, str]) -> ScaleGroup:
    tensors = sorted(names.get(tensor, tensor) for tensor in group.tensors)
    return msgspec.structs.replace(group, tensors=tuple(tensors))


def _context_changes(old: Plan, new: Plan) -> Iterator[tuple[str, str, str]]:
    if old.float_type != new.float_type:
        yield "float_type", old.float_type or FP32.name, new.float_type or FP32.name
    for key in ("targets", "rule_sets", "leave_float", "sensitive", "profiles"):
        old_text = _join_texts(getattr(old, key) or ())
        new_text = _join_texts(getattr(new, key) or ())
        if old_text != new_text:
            yield key, old_text, new_text


def _join_texts(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _edge_changes(old_decisions: _Decisions, new_decisions: _Decisions) -> Iterator[EdgeChange]:
    """Yield the changes in the order of the newer plan, then the edges that only the older has."""
    locations = dict.fromkeys((*new_decisions, *old_decisions))
    for location in locations:
        old = old_decisions.get(location)
        new = new_decisions.get(location)
        kind = _classify_change(old, new)
        decision = new or old
        if not kind or not decision:
            continue
        old_text = _describe(old)
        new_text = _describe(new)
        yield EdgeChange(kind, decision.edge, old_text, new_text)


def _classify_change(old: _Decision | None, new: _Decision | None) -> str:
    """Return the kind of the change, "" where there is none."""
    old_quantizer = old.quantizer if isinstance(old, Placement) else None
    new_quantizer = new.quantizer if isinstance(new, Placement) else None
    if new_quantizer == old_quantizer:
        is_same = _describe(old) == _describe(new)
        return "" if is_same else "reason"
    if old_quantizer is None:
        return "gained"
    if new_quantizer is None:
        return "lost"
    return "format"


def _describe(decision: _Decision | None) -> str:
    if decision is None:
        return ""
    if isinstance(decision, LeftFloat):
        return f"float by {decision.because}"
    rules = ", ".join(decision.because)
    return f"{decision.quantizer} by {rules}"
