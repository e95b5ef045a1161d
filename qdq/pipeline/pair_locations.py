"""Where the pairs of a rewritten model are: the plan's edges, or those that a model has instead.

A pair before an alias or a Cast keeps its learned scale exactly where it stays there, in the float
type that it was learned in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from qdq.graph.aliases import can_cast_dequantized, cast_type, is_alias_or_float_cast, keeps_values
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operators import FUSED_AFTER_WEIGHTED
from qdq.graph.patterns import can_commute_with_quantization
from qdq.planning.decisions import Placement, Plan, ScaleGroup
from qdq.quantized.model import QuantizedEdge, QuantizedModel

_Placements = Mapping[Edge, Placement]


def keep_locations(quantized_model: QuantizedModel, plan: Plan) -> Plan:
    """Return a plan whose pairs stay where a model has them before aliases and Casts of a layer.

    A pair moves to the plan's edge where another node reads its values, and where the layer would
    run in float behind the Casts.
    """
    placements = {placement.edge: placement for placement in plan.placements}
    existing_edges = {pair.edge for pair in quantized_model.edges}
    planned = {edge: p for edge, p in placements.items() if edge not in existing_edges}
    locations: dict[Edge, tuple[Edge, ...]] = {}
    for pair in quantized_model.edges:
        ends = _find_layer_edges(quantized_model.index, pair, planned)
        if pair.edge not in placements and ends:
            locations[pair.edge] = ends
    if not locations:
        return plan
    for edge, ends in locations.items():
        moved = [placements.pop(end) for end in ends]
        rules = dict.fromkeys(rule for placement in moved for rule in placement.because)
        placements[edge] = msgspec.structs.replace(moved[0], edge=edge, because=tuple(rules))
    return _replace_placements(quantized_model.index, plan, placements, locations)


def _find_layer_edges(
    index: GraphIndex, pair: QuantizedEdge, planned: _Placements
) -> tuple[Edge, ...]:
    """Return the planned edges that a pair reaches through aliases and Casts alone.

    Empty where it reaches another node, a graph output or a body, or where plans of its edges
    differ.
    """
    edge = pair.edge
    scope = index.scope(edge)
    ends: list[Edge] = []
    pending: list[tuple[Edge, tuple[int, ...]]] = [(edge, (scope.elem_type(edge.tensor),))]
    while pending:
        edge, types = pending.pop()
        node = scope.node(edge)
        if edge in planned and can_cast_dequantized(types):
            ends.append(edge)
        elif edge.slot == 0 and is_alias_or_float_cast(scope, node):
            if _leaves_graph(scope, node.outputs[0]):
                return ()
            types = (*types, cast_type(scope, node) or types[-1])
            readers = scope.edges_from(node.outputs[0])
            pending += [(reader, types) for reader in readers if scope.node(reader).op != "Shape"]
        else:
            return ()
    quantizers = {planned[end].quantizer for end in ends}
    return tuple(ends) if len(quantizers) == 1 else ()


def _leaves_graph(scope: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is a graph output or is read by a body."""
    readers = scope.consumers.get(tensor, ())
    return tensor in scope.outputs or any(slot < 0 for _, slot in readers)


def _replace_placements(
    index: GraphIndex,
    plan: Plan,
    placements: _Placements,
    locations: Mapping[Edge, tuple[Edge, ...]],
) -> Plan:
    """Return a plan with other placements; `locations` holds the edges that each replaces."""
    tensors: dict[str, str] = {}
    for edge, ends in locations.items():
        tensors.update((end.qualified_tensor, edge.qualified_tensor) for end in ends)
    kept_tensors = {placement.edge.qualified_tensor for placement in placements.values()}
    groups = [_rename_group(group, tensors, kept_tensors) for group in plan.scale_groups]
    return msgspec.structs.replace(
        plan,
        placements=sort_placements(index, placements),
        left_float=tuple(item for item in plan.left_float if item.edge not in placements),
        scale_groups=tuple(group for group in groups if len(group.tensors) > 1),
    )


def _rename_group(
    group: ScaleGroup, tensors: Mapping[str, str], kept_tensors: Iterable[str]
) -> ScaleGroup:
    renamed: set[str] = set()
    for tensor in group.tensors:
        renamed.add(tensor if tensor in kept_tensors else tensors.get(tensor, tensor))
    return msgspec.structs.replace(group, tensors=tuple(sorted(renamed)))


def sort_placements(index: GraphIndex, placements: _Placements) -> tuple[Placement, ...]:
    """Return placements in the order of their edges in a graph and its bodies."""
    ordered: list[Placement] = []
    for scope in index.scopes.values():
        ordered += [placements[edge] for edge in scope.edges() if edge in placements]
    return tuple(ordered)


class PairReach:
    """The edges that a pair's values reach, however they are moved, cast or activated."""

    def __init__(self, index: GraphIndex) -> None:
        self._scopes = index.scopes

    def find_edges(self, edge: Edge) -> Iterator[Edge]:
        """Yield an edge and all edges downstream of it, those in bodies too."""
        pending = [edge]
        visited = {edge}
        while pending:
            edge = pending.pop()
            yield edge
            for reader in self._list_readers(edge):
                if reader not in visited:
                    visited.add(reader)
                    pending.append(reader)

    def _list_readers(self, edge: Edge) -> list[Edge]:
        """Return the edges that read the result of an edge's node, if that passes values on."""
        scope = self._scopes[edge.graph]
        node = scope.by_label[edge.node]
        if not _passes_on(scope, node, edge.slot):
            return []
        readers: list[Edge] = []
        for tensor in filter(None, node.outputs):
            for reading_scope in self._scopes.values():
                if reading_scope.defining_scope(tensor).path == scope.path:
                    readers += reading_scope.edges_from(tensor)
        return readers


def _passes_on(scope: GraphIndex, node: Node, slot: int) -> bool:
    """Whether a node's result has the values of one of its input slots, perhaps activated."""
    if node.op == "Concat":
        return True
    if slot != 0:
        return False
    is_moved = keeps_values(scope, node) or can_commute_with_quantization(scope, node)
    return is_moved or node.op in FUSED_AFTER_WEIGHTED
