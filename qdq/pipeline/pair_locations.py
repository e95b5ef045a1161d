"""Where the pairs of a rewritten model are: the plan's edges, or those that a model has instead.

A pair before an alias or a Cast keeps its learned scale exactly where it stays there, in the float
type that it was learned in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

import msgspec

from qdq.graph.aliases import can_cast_dequantized, cast_type, is_alias_or_float_cast, keeps_values
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operators import FUSED_AFTER_WEIGHTED
from qdq.graph.patterns import carries_pairs, trace_axis_to_input
from qdq.planning.decisions import Placement, Plan, ScaleGroup, sort_placements
from qdq.quantized.model import QuantizedModel
from qdq.quantizer import Quantizer

_Placements = Mapping[Edge, Placement]


class _Path(msgspec.Struct, frozen=True):
    """The nodes from a pair to an edge downstream, and the types of their values."""

    edge: Edge
    nodes: tuple[Node, ...]
    #: The type of the pair's tensor, then those of Casts.
    types: tuple[int, ...]

    def can_stay(self, scope: GraphIndex) -> bool:
        """Whether a pair before the nodes has an advantage over one after them.

        It does before Casts, where it keeps its type, and is no worse before aliases.
        """
        is_cast = len(set(self.types)) > 1
        has_moves = any(not is_alias_or_float_cast(scope, node) for node in self.nodes)
        return can_cast_dequantized(self.types) and (is_cast or not has_moves)

    def trace_axis(self, scope: GraphIndex, axis: int | None) -> int | None:
        """Return the axis at the pair that is an axis at the edge, None where there is none."""
        for node in reversed(self.nodes):
            axis = trace_axis_to_input(scope, node, axis) if keeps_values(scope, node) else None
        return axis


def keep_locations(quantized_model: QuantizedModel, plan: Plan) -> Plan:
    """Return a plan whose pairs stay where a model has them before aliases and Casts of a layer.

    A pair moves to the plan's edge where another node reads its values, and where the layer would
    run in float behind the Casts.
    """
    index = quantized_model.index
    placements = {placement.edge: placement for placement in plan.placements}
    existing_edges = {pair.edge for pair in quantized_model.edges}
    free = {edge: p for edge, p in placements.items() if edge not in existing_edges}
    locations: dict[Edge, tuple[Edge, ...]] = {}
    for pair in quantized_model.edges:
        others = existing_edges - {pair.edge}
        located = _locate(index, pair.edge, free, others)
        if located is not None and pair.edge not in placements:
            placements[pair.edge], locations[pair.edge] = located
    for edges in locations.values():
        for edge in edges:
            placements.pop(edge)
    return _replace_placements(index, plan, placements, locations) if locations else plan


def _locate(
    index: GraphIndex, edge: Edge, planned: _Placements, ends: Set[Edge]
) -> tuple[Placement, tuple[Edge, ...]] | None:
    """Return a placement on an edge, and the planned edges that it replaces.

    None where it would reach another edge too, or `ends`, or where its quantizers there differ.
    """
    scope = index.scope(edge)
    paths = _find_paths(scope, edge, planned, ends)
    quantizers: set[Quantizer] = set()
    rules: dict[str, None] = {}
    for path in paths:
        placement = planned[path.edge]
        axis = path.trace_axis(scope, placement.quantizer.axis)
        if (axis is None) != (placement.quantizer.axis is None) or not path.can_stay(scope):
            return None
        quantizers.add(msgspec.structs.replace(placement.quantizer, axis=axis))
        rules.update(dict.fromkeys(placement.because))
    if len(quantizers) != 1:
        return None
    placement = Placement(edge, quantizers.pop(), tuple(rules))
    return placement, tuple(path.edge for path in paths)


def _find_paths(
    scope: GraphIndex, edge: Edge, planned: _Placements, ends: Set[Edge]
) -> tuple[_Path, ...]:
    """Return the paths from an edge to planned edges, through nodes that quantization moves past.

    There are none where a path leads elsewhere, or to one of `ends`.
    """
    paths: list[_Path] = []
    pending = [_Path(edge, (), (scope.elem_type(edge.tensor),))]
    while pending:
        path = pending.pop()
        node = scope.node(path.edge)
        if path.edge in planned:
            paths.append(path)
            continue
        is_passed = path.edge.slot == 0 and carries_pairs(scope, node)
        if not is_passed or node.op == "Resize" or path.edge in ends:
            return ()
        types = (*path.types, cast_type(scope, node) or path.types[-1])
        for output in filter(None, node.outputs):
            if _leaves_graph(scope, output):
                return ()
            for reader in scope.edges_from(output):
                if scope.node(reader).op != "Shape":
                    pending.append(_Path(reader, (*path.nodes, node), types))
    return tuple(paths)


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
        """Return the edges that read the result of an edge's node, if that passes values on.

        A node with bodies passes them on to every edge there.
        """
        scope = self._scopes[edge.graph]
        node = scope.by_label[edge.node]
        if node.bodies:
            return self._list_body_edges(qualified_name(edge.graph, edge.node))
        if not _passes_on(scope, node, edge.slot):
            return []
        readers: list[Edge] = []
        for tensor in filter(None, node.outputs):
            for reading_scope in self._scopes.values():
                if reading_scope.defining_scope(tensor).path == scope.path:
                    readers += reading_scope.edges_from(tensor)
        return readers

    def _list_body_edges(self, path: str) -> list[Edge]:
        """Return the edges in all bodies of a node, by the path of the node."""
        edges: list[Edge] = []
        for body_path, body in self._scopes.items():
            if body_path.startswith(f"{path}."):
                edges += body.edges()
        return edges


def _passes_on(scope: GraphIndex, node: Node, slot: int) -> bool:
    """Whether a node's result has the values of one of its input slots, perhaps activated."""
    if node.op == "Concat":
        return True
    if slot != 0:
        return False
    return carries_pairs(scope, node) or node.op in FUSED_AFTER_WEIGHTED
