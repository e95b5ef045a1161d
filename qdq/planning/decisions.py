"""The decisions of a plan: placements, edges left in float and scale groups."""

from __future__ import annotations

import hashlib

import msgspec

from qdq.graph.index import Edge
from qdq.graph.shape_profiles import Profile
from qdq.quantizer import Quantizer
from qdq.target import Target

#: Reasons that are no rule's: they follow from the graph.
INCOMPLETE = "incomplete"
BODY = "body"
FUNCTION = "function"

#: Why an edge that no rule speaks of stays in float.
NO_RULE = "no rule asks for a pair here"


class Placement(msgspec.Struct, frozen=True):
    """An edge that gets a pair."""

    edge: Edge
    quantizer: Quantizer
    #: Names of the rules that asked for it.
    because: tuple[str, ...]


class LeftFloat(msgspec.Struct, frozen=True):
    """A candidate edge that stays in float."""

    edge: Edge
    #: The rule that kept it there, or "incomplete", "body" or "function".
    because: str
    reason: str


class ScaleGroup(msgspec.Struct, frozen=True, order=True):
    """Tensors that get one range, and the rules that tie them."""

    tensors: tuple[str, ...]
    because: tuple[str, ...]
    #: A tensor keeps a range of its own where the group's is more than so many times as large; None for no limit.
    ratio_at_most: float | None = None


class Plan(msgspec.Struct, frozen=True):
    """Every decision about one model, made before a byte of it changes."""

    model: str
    #: Digest of the model that the plan is for.
    digest: str
    #: What the loader had to raise, and targets without a kernel table of their own, one sentence each.
    notes: tuple[str, ...]
    targets: tuple[Target, ...]
    #: Names of the rule sets and the `--leave-float` globs that made it.
    rule_sets: tuple[str, ...]
    leave_float: tuple[str, ...]
    placements: tuple[Placement, ...]
    left_float: tuple[LeftFloat, ...]
    scale_groups: tuple[ScaleGroup, ...]
    #: The shapes that rules about shapes went by, besides those in the model.
    profiles: tuple[Profile, ...] = ()

    @property
    def key(self) -> str:
        """SHA-256 of the plan: what scales made for it refer to."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def group_by_pair(plan: Plan) -> dict[tuple[str, Quantizer], tuple[Placement, ...]]:
    """Return the pairs of a plan: the placements of each tensor, as `Edge.read` gives it, and quantizer, in plan order."""
    pairs: dict[tuple[str, Quantizer], list[Placement]] = {}
    for placement in plan.placements:
        pairs.setdefault((placement.edge.qualified_tensor, placement.quantizer), []).append(
            placement
        )
    return {key: tuple(placements) for key, placements in pairs.items()}


def placement_lines(plan: Plan) -> list[str]:
    """Return a plan's decisions, one line an edge: edge, quantizer, rules."""
    lines = [f"{p.edge}  {p.quantizer}  {', '.join(p.because)}" for p in plan.placements]
    return lines + [
        f"{' + '.join(group.tensors)}  share-scale  {', '.join(group.because)}"
        for group in plan.scale_groups
    ]


def left_float_lines(plan: Plan) -> list[str]:
    """Return the edges a plan leaves in float, one line each: edge, rule."""
    return [f"{item.edge}  {item.because}" for item in plan.left_float]
