"""The decisions of a plan: placements, edges left in float and scale groups."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import msgspec

from qdq.errors import UsageError
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.shape_profiles import Profile
from qdq.quantizer import Quantizer
from qdq.target import Target

#: Reasons that follow from the graph and are no rules.
INCOMPLETE = "incomplete"
BODY = "body"
FUNCTION = "function"
#: No output of the model depends on the node.
UNUSED = "unused"
#: The node computes a constant.
CONSTANT = "constant"
#: The tensor is bfloat16 or float64.
TYPE = "type"
#: The weight depends on the file alone, but its value cannot be computed.
UNKNOWN = "unknown"

#: All of these.
GRAPH_REASONS = (INCOMPLETE, BODY, FUNCTION, UNUSED, CONSTANT, TYPE, UNKNOWN)
ALIAS = "alias"

#: The reason why an edge without a rule stays in float.
NO_RULE = "No rule requests a pair here."


#: The rule of the layers that a measurement left in float.
SENSITIVE = "sensitive"


class SensitiveLayer(msgspec.Struct, frozen=True):
    """A node left in float because its INT8 was measured to make much of the error."""

    #: Label of the node, after the path of its subgraph.
    node: str
    #: What it adds to the signal-to-noise ratio at the outputs to leave it in float, in dB,
    #: together with the nodes that were released with it.
    gain_db: float

    def __str__(self) -> str:
        return f"{self.gain_db:.2f} dB: {self.node}"

    @property
    def reason(self) -> str:
        """The reason why its inputs stay in float."""
        return (
            f"In float it raises the signal-to-noise ratio at the outputs by {self.gain_db:.2f} dB."
        )


def parse_sensitive_layer(text: str) -> SensitiveLayer:
    """Return the sensitive layer that a text states; raises UsageError for other texts."""
    gain, separator, node = text.partition(" dB: ")
    try:
        gain_db = float(gain)
    except ValueError:
        gain_db = math.nan
    if not separator or not node or not math.isfinite(gain_db):
        raise UsageError(f"{text!r} is no sensitive layer. Write it as '4.63 dB: NODE'.")
    return SensitiveLayer(node, gain_db)


class Placement(msgspec.Struct, frozen=True):
    """An edge that gets a pair."""

    edge: Edge
    quantizer: Quantizer
    #: Names of the rules that requested it.
    because: tuple[str, ...]


class LeftFloat(msgspec.Struct, frozen=True):
    """A candidate edge that stays in float."""

    edge: Edge
    #: The rule that decided it, or "incomplete", "body", "function", "unused", "constant", "type"
    #: or "unknown".
    because: str
    #: The rule's sentence, or the cause in the graph.
    reason: str


class KeptFp32(msgspec.Struct, frozen=True):
    """A node that computes in FP32 where the float part becomes FP16 or BF16."""

    #: Label of the node, after the path of its subgraph.
    node: str
    #: The names of the rules that keep it.
    because: str
    #: The sentence of the first of them.
    reason: str


class ScaleGroup(msgspec.Struct, frozen=True, order=True):
    """Tensors that share one range, and the rules that connect them."""

    #: The tensors, in order of their names.
    tensors: tuple[str, ...]
    #: Names of the rules that connect them, and "alias" where a compiler reads one tensor.
    because: tuple[str, ...]
    #: The largest ratio of the group's range to a tensor's; above it the tensor keeps its range.
    #: None for no limit.
    ratio_at_most: float | None = None


class Plan(msgspec.Struct, frozen=True):
    """Every decision about one model, before any byte of it changes."""

    #: The model's file name, or its graph's name.
    model: str
    #: Digest of the model that the plan is for.
    digest: str
    #: One sentence each: what the loader raised, targets without a kernel table, other shapes.
    notes: tuple[str, ...]
    targets: tuple[Target, ...]
    #: Names of the rule sets, and the `--leave-float` globs.
    rule_sets: tuple[str, ...]
    #: The `--leave-float` globs.
    leave_float: tuple[str, ...]
    placements: tuple[Placement, ...]
    left_float: tuple[LeftFloat, ...]
    scale_groups: tuple[ScaleGroup, ...]
    #: The shapes that rules about shapes used, in addition to those in the model.
    profiles: tuple[Profile, ...] = ()
    #: The layers that a measurement left in float; absent where there are none.
    sensitive: tuple[SensitiveLayer, ...] | msgspec.UnsetType = msgspec.UNSET
    #: The type that the float part gets, ``fp16`` or ``bf16``; absent where it stays float32.
    float_type: str | msgspec.UnsetType = msgspec.UNSET
    #: The nodes that rules keep in FP32 then, without ranges; absent where there are none.
    keep_fp32: tuple[KeptFp32, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> str:
        """SHA-256 of the plan, by which its scales refer to it."""
        content = msgspec.json.encode(self)
        return hashlib.sha256(content).hexdigest()


def sort_placements(
    index: GraphIndex, placements: Mapping[Edge, Placement]
) -> tuple[Placement, ...]:
    """Return placements in the order of their edges in a graph and its bodies."""
    ordered: list[Placement] = []
    for scope in index.scopes.values():
        ordered += [placements[edge] for edge in scope.edges() if edge in placements]
    return tuple(ordered)


def group_by_pair(plan: Plan) -> dict[tuple[str, Quantizer], tuple[Placement, ...]]:
    """Return the placements that share a pair, in plan order.

    The keys are the tensor, as `Edge.qualified_tensor` gives it, and the quantizer.
    """
    pairs: dict[tuple[str, Quantizer], list[Placement]] = {}
    for placement in plan.placements:
        tensor = placement.edge.qualified_tensor
        placements = pairs.setdefault((tensor, placement.quantizer), [])
        placements.append(placement)
    return {key: tuple(placements) for key, placements in pairs.items()}


def placement_lines(plan: Plan) -> list[str]:
    """Return one line per placement (edge, quantizer, rules), then one per scale group."""
    lines: list[str] = []
    for placement in plan.placements:
        rules = ", ".join(placement.because)
        lines.append(f"{placement.edge}  {placement.quantizer}  {rules}")
    for group in plan.scale_groups:
        tensors = " + ".join(group.tensors)
        rules = ", ".join(group.because)
        lines.append(f"{tensors}  share-scale  {rules}")
    return lines


def keep_fp32_lines(plan: Plan) -> list[str]:
    """Return one line per node that a plan keeps in FP32: node, rules."""
    return [f"{kept.node}  {kept.because}" for kept in plan.keep_fp32 or ()]


def left_float_lines(plan: Plan) -> list[str]:
    """Return one line per edge that a plan leaves in float: edge, rule."""
    return [f"{item.edge}  {item.because}" for item in plan.left_float]
