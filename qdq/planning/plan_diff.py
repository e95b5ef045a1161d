"""What changed between two plans: pairs gained and lost, formats, reasons and scale groups."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from qdq.graph.index import Edge
from qdq.planning.decisions import LeftFloat, Placement, Plan, ScaleGroup

_Decision = Placement | LeftFloat


class EdgeChange(msgspec.Struct, frozen=True):
    """One edge that two plans decide otherwise."""

    #: ``gained`` or ``lost`` for a pair, ``format`` for another number format, ``reason`` for the same decision by other rules.
    kind: str
    edge: Edge
    #: What the older plan said, "" where it said nothing of this edge.
    old: str
    new: str


class PlanDiff(msgspec.Struct, frozen=True):
    """Everything in which a plan differs from an older one; edges are matched by node and slot."""

    #: Whether both are for the same model, by digest.
    same_model: bool
    #: Targets, rule sets and globs where they differ: what, old, new.
    context: tuple[tuple[str, str, str], ...]
    edges: tuple[EdgeChange, ...]
    groups_gained: tuple[ScaleGroup, ...]
    groups_lost: tuple[ScaleGroup, ...]

    def __bool__(self) -> bool:
        return bool(self.edges or self.groups_gained or self.groups_lost)


def diff_plans(old: Plan, new: Plan) -> PlanDiff:
    """Return what changed from an older plan to a newer one, which may be of another export of the model."""
    before, after = _decisions(old), _decisions(new)
    renamed = {
        before[key].edge.qualified_tensor: after[key].edge.qualified_tensor
        for key in before.keys() & after.keys()
    }
    had = {_renamed(group, renamed) for group in old.scale_groups}
    return PlanDiff(
        same_model=old.digest == new.digest,
        context=tuple(_made_for(old, new)),
        edges=tuple(_changes(before, after)),
        groups_gained=tuple(g for g in new.scale_groups if g not in had),
        groups_lost=tuple(sorted(had - set(new.scale_groups))),
    )


def _decisions(plan: Plan) -> dict[tuple[str, str, int], _Decision]:
    """Return what a plan says of each edge, by graph, node and slot."""
    decisions: list[_Decision] = [*plan.placements, *plan.left_float]
    return {(d.edge.graph, d.edge.node, d.edge.slot): d for d in decisions}


def _made_for(old: Plan, new: Plan) -> Iterator[tuple[str, str, str]]:
    for key in ("targets", "rule_sets", "leave_float", "profiles"):
        was, now = (", ".join(map(str, getattr(plan, key))) for plan in (old, new))
        if was != now:
            yield key, was, now


def _changes(
    before: dict[tuple[str, str, int], _Decision], after: dict[tuple[str, str, int], _Decision]
) -> Iterator[EdgeChange]:
    for key in (*after, *(key for key in before if key not in after)):
        was, now = before.get(key), after.get(key)
        if (kind := _kind(was, now)) and (known := now or was):
            yield EdgeChange(kind, known.edge, _said(was), _said(now))


def _kind(was: _Decision | None, now: _Decision | None) -> str:
    """Return what became of one edge, "" where nothing did."""
    if isinstance(now, Placement) and not isinstance(was, Placement):
        return "gained"
    if isinstance(was, Placement) and not isinstance(now, Placement):
        return "lost"
    if isinstance(was, Placement) and isinstance(now, Placement) and was.quantizer != now.quantizer:
        return "format"
    return "reason" if _said(was) != _said(now) else ""


def _said(decision: _Decision | None) -> str:
    if isinstance(decision, Placement):
        return f"{decision.quantizer} by {', '.join(decision.because)}"
    return f"float by {decision.because}" if decision else ""


def _renamed(group: ScaleGroup, names: dict[str, str]) -> ScaleGroup:
    return msgspec.structs.replace(
        group, tensors=tuple(sorted(names.get(t, t) for t in group.tensors))
    )
