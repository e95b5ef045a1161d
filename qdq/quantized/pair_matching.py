"""Matches between the pairs of two models, also where a pair has moved to another edge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.node_matching import NodePlace
from qdq.graph.patterns import carries_pairs
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.pair_format import has_same_scales

#: The places of the newer model's nodes in the older model.
Places = Mapping[NodePlace, NodePlace]

#: Graph, node and input slot of an edge.
_Slot = tuple[str, str, int]


class PairMatch(NamedTuple):
    """A pair in the older model, the newer model, or both."""

    old: QuantizedEdge | None
    new: QuantizedEdge | None
    #: Whether the pair is on another edge in the newer model.
    is_moved: bool = False


class _Origin(NamedTuple):
    """The output that a tensor comes from, named as in the older model."""

    graph: str
    #: Label of the node, or the name of a tensor that no node computes.
    node: str
    #: Number of the node's output, -1 where no node computes the tensor.
    output: int


def match_pairs(old: QuantizedModel, new: QuantizedModel, places: Places) -> Iterator[PairMatch]:
    """Yield the pairs in the newer model's order of edges, then removed ones in the older's."""
    kept = _match_kept(old, new, places)
    removed = _exclude(old.edges, kept.values())
    added = [new_edge for new_edge in new.edges if _slot(new_edge) not in kept]
    moved = _match_moved(_group_by_origin(old.index, removed), new.index, added, places)
    for new_edge in new.edges:
        slot = _slot(new_edge)
        if slot in kept:
            yield PairMatch(kept[slot], new_edge)
        elif slot in moved:
            yield PairMatch(moved[slot], new_edge, is_moved=True)
        else:
            yield PairMatch(None, new_edge)
    for old_edge in _exclude(removed, moved.values()):
        yield PairMatch(old_edge, None)


def _slot(quantized_edge: QuantizedEdge) -> _Slot:
    edge = quantized_edge.edge
    return edge.graph, edge.node, edge.slot


def _exclude(
    edges: Iterable[QuantizedEdge], excluded: Iterable[QuantizedEdge]
) -> list[QuantizedEdge]:
    slots = set(map(_slot, excluded))
    return [edge for edge in edges if _slot(edge) not in slots]


def _match_kept(
    old: QuantizedModel, new: QuantizedModel, places: Places
) -> dict[_Slot, QuantizedEdge]:
    """Return the older pair on the edge of each newer one that has not moved."""
    old_edges = {_slot(old_edge): old_edge for old_edge in old.edges}
    kept: dict[_Slot, QuantizedEdge] = {}
    for new_edge in new.edges:
        old_slot = _find_old_slot(new_edge.edge, places)
        if old_slot in old_edges:
            kept[_slot(new_edge)] = old_edges[old_slot]
    return kept


def _find_old_slot(edge: Edge, places: Places) -> _Slot | None:
    """Return the slot in the older model that matches an edge of the newer."""
    place = places.get((edge.graph, edge.node))
    return None if place is None else (*place, edge.slot)


def _group_by_origin(
    index: GraphIndex, removed: Iterable[QuantizedEdge]
) -> dict[_Origin, list[QuantizedEdge]]:
    groups: defaultdict[_Origin, list[QuantizedEdge]] = defaultdict(list)
    for old_edge in removed:
        origin = _find_origin(index, old_edge.edge, {})
        groups[origin].append(old_edge)
    return groups


def _match_moved(
    removed: dict[_Origin, list[QuantizedEdge]],
    index: GraphIndex,
    added: Iterable[QuantizedEdge],
    places: Places,
) -> dict[_Slot, QuantizedEdge]:
    """Return the removed pair of each added pair that has moved.

    A pair has moved if both are on one origin. Pairs of equal scales are matched first.
    """
    candidates: list[tuple[QuantizedEdge, list[QuantizedEdge]]] = []
    for new_edge in added:
        origin = _find_origin(index, new_edge.edge, places)
        if origin in removed:
            candidates.append((new_edge, removed[origin]))
    candidates.sort(key=lambda candidate: _find_same_scales(*candidate) is None)
    moved: dict[_Slot, QuantizedEdge] = {}
    for new_edge, old_edges in candidates:
        if old_edges:
            position = _find_same_scales(new_edge, old_edges) or 0
            moved[_slot(new_edge)] = old_edges.pop(position)
    return moved


def _find_same_scales(new_edge: QuantizedEdge, old_edges: list[QuantizedEdge]) -> int | None:
    """Return the position of the first older pair with the scales of a newer one."""
    for position, old_edge in enumerate(old_edges):
        if has_same_scales(old_edge, new_edge):
            return position
    return None


def _find_origin(index: GraphIndex, edge: Edge, places: Places) -> _Origin:
    """Return the origin of an edge's tensor, before operators that commute with quantization."""
    tensor = edge.tensor
    scope = index.scope(edge).defining_scope(tensor)
    producer = scope.producers.get(tensor)
    while producer is not None and _can_move_across(scope, producer):
        tensor = producer.inputs[0]
        scope = scope.defining_scope(tensor)
        producer = scope.producers.get(tensor)
    if producer is None:
        return _Origin(scope.path, tensor, -1)
    place = (scope.path, producer.label)
    graph, node = places.get(place, place)
    output = producer.outputs.index(tensor)
    return _Origin(graph, node, output)


def _can_move_across(index: GraphIndex, node: Node) -> bool:
    """Whether a symmetric pair may be before or after a node.

    Relu is one such node: it keeps 0 and the order of values.
    """
    if not node.inputs:
        return False
    return node.op == "Relu" or carries_pairs(index, node)
