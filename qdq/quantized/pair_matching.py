"""Matches between the pairs of two models, also where a pair has moved to another edge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.node_matching import NodePlace
from qdq.graph.patterns import can_commute_with_quantization
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
    old_edges = {_slot(old_edge.edge): old_edge for old_edge in old.edges}
    kept: dict[_Slot, QuantizedEdge] = {}
    for new_edge in new.edges:
        old_slot = _find_old_slot(new_edge.edge, places)
        if old_slot in old_edges:
            kept[_slot(new_edge.edge)] = old_edges[old_slot]
    for old_edge in kept.values():
        old_edges.pop(_slot(old_edge.edge), None)
    removed = _group_by_origin(old.index, old_edges.values())
    added = [new_edge for new_edge in new.edges if _slot(new_edge.edge) not in kept]
    moved = _match_moved(removed, new.index, added, places)
    for new_edge in new.edges:
        slot = _slot(new_edge.edge)
        yield PairMatch(kept.get(slot) or moved.get(slot), new_edge, slot in moved)
    moved_from = {_slot(old_edge.edge) for old_edge in moved.values()}
    for slot, old_edge in old_edges.items():
        if slot not in moved_from:
            yield PairMatch(old_edge, None)


def _slot(edge: Edge) -> _Slot:
    return edge.graph, edge.node, edge.slot


def _find_old_slot(edge: Edge, places: Places) -> _Slot | None:
    """Return the slot in the older model that matches an edge of the newer."""
    place = places.get((edge.graph, edge.node))
    if place is None:
        return None
    graph, node = place
    return graph, node, edge.slot


def _group_by_origin(
    index: GraphIndex, removed: Iterable[QuantizedEdge]
) -> dict[_Origin, list[QuantizedEdge]]:
    groups: defaultdict[_Origin, list[QuantizedEdge]] = defaultdict(list)
    for old_edge in removed:
        origin = _find_origin(index.scope(old_edge.edge), old_edge.edge, {})
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
        origin = _find_origin(index.scope(new_edge.edge), new_edge.edge, places)
        if origin in removed:
            candidates.append((new_edge, removed[origin]))
    candidates.sort(key=lambda candidate: _find_same_scales(*candidate) is None)
    moved: dict[_Slot, QuantizedEdge] = {}
    for new_edge, old_edges in candidates:
        if old_edges:
            position = _find_same_scales(new_edge, old_edges) or 0
            moved[_slot(new_edge.edge)] = old_edges.pop(position)
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
    index = index.defining_scope(tensor)
    producer = index.producers.get(tensor)
    while producer is not None and _can_move_across(index, producer):
        tensor = producer.inputs[0]
        index = index.defining_scope(tensor)
        producer = index.producers.get(tensor)
    if producer is None:
        return _Origin(index.path, tensor, -1)
    place = (index.path, producer.label)
    graph, node = places.get(place, place)
    return _Origin(graph, node, producer.outputs.index(tensor))


def _can_move_across(index: GraphIndex, node: Node) -> bool:
    """Whether a symmetric pair may be before or after a node.

    Relu is one such node: it keeps 0 and the order of values.
    """
    if not node.inputs:
        return False
    return node.op == "Relu" or can_commute_with_quantization(index, node)
