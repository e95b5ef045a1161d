"""Residual Adds: which input a convolution is fused with, and which one skips it.

TensorRT fuses a convolution with the Add after it; the type of the Add's other operand then
decides whether the fused kernel can be INT8 from end to end (TensorRT documentation, explicit
quantization, Q/DQ placement recommendations). The other operand is the residual branch.
"""

from __future__ import annotations

from collections import deque

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.neighbors import has_constant_input
from qdq.graph.operators import (
    ACTIVATIONS_BEFORE_RESIDUAL,
    CONVOLUTIONS,
    FOLDED_BEFORE_RESIDUAL,
    MOVES_BEFORE_RESIDUAL,
)
from qdq.graph.patterns import find_self_gated

_TERMS = 2


def find_residual_slot(
    index: GraphIndex, add: Node, backbones: tuple[str, ...] = CONVOLUTIONS
) -> int | None:
    """Return the slot of an Add's residual branch, None where it joins no backbone with a skip.

    `backbones` are convolutions or other operators. With one on one side of the Add, the other side
    is the residual. With one on each side, the branch with the longer path to their lowest common
    ancestor is fused and the shorter one is the residual. At equal length the second input is
    fused.
    """
    if not _joins_two_branches(index, add):
        return None
    first, second = add.inputs
    first_backbone = find_backbone(index, first, backbones)
    second_backbone = find_backbone(index, second, backbones)
    if first_backbone is None and second_backbone is None:
        return None
    if first_backbone is None:
        return 0
    if second_backbone is None:
        return 1
    distances = _distances_to_common_ancestor(index, first, second)
    if distances is None:
        return 0
    first_distance, second_distance = distances
    if first_distance > second_distance:
        return 1
    return 0


def find_backbone(
    index: GraphIndex, tensor: str, backbones: tuple[str, ...] = CONVOLUTIONS
) -> Node | None:
    """Return the convolution that a tensor comes from, None where there is none.

    Only folded operators and activations may be between them, without other readers. `backbones`
    names other operators to search for, such as MATRIX_PRODUCTS in transformers and ConvNeXt;
    after a matrix product there may be moves too, but no activations.
    """
    between: tuple[str, ...] = (*FOLDED_BEFORE_RESIDUAL, *ACTIVATIONS_BEFORE_RESIDUAL)
    if backbones != CONVOLUTIONS:
        between = (*FOLDED_BEFORE_RESIDUAL, *MOVES_BEFORE_RESIDUAL)
    node = index.producers.get(tensor)
    while node is not None and _is_read_once(index, tensor):
        if node.op in backbones:
            return node
        computed = [name for name in node.inputs if name and not index.is_constant(name)]
        if node.op in between and len(computed) == 1:
            tensor = computed[0]
        else:
            if backbones != CONVOLUTIONS:
                return None
            self_gated = find_self_gated(index, node)
            if not self_gated:
                return None
            tensor = self_gated
        node = index.producers.get(tensor)
    return None


def _is_read_once(index: GraphIndex, tensor: str) -> bool:
    """Whether one node reads a tensor, or the two nodes of one SiLU."""
    if index.sole_consumer(tensor):
        return True
    readers = [node for node, _ in index.live_readers(tensor)]
    if len(readers) != _TERMS or tensor in index.outputs:
        return False
    return any(find_self_gated(index, node) == tensor for node in readers)


def find_fused_backbone(
    index: GraphIndex, edge: Edge, backbones: tuple[str, ...] = CONVOLUTIONS
) -> Node | None:
    """Return the convolution, or other backbone, of an Add's other operand, by an edge."""
    add = index.node(edge)
    if len(add.inputs) != _TERMS or edge.slot >= _TERMS:
        return None
    return find_backbone(index, add.inputs[1 - edge.slot], backbones)


def _joins_two_branches(index: GraphIndex, add: Node) -> bool:
    """Whether a node is an Add of two computed tensors of one shape, as far as that is known."""
    if add.op != "Add" or len(add.inputs) != _TERMS:
        return False
    first, second = add.inputs
    if first == second or has_constant_input(index, add):
        return False
    first_shape = index.shape(first)
    second_shape = index.shape(second)
    if first_shape is None or second_shape is None:
        return True
    if len(first_shape) != len(second_shape):
        return False
    sizes = zip(first_shape, second_shape, strict=True)
    return not any(_is_broadcast(*pair) for pair in sizes)


def _is_broadcast(size: int | None, other_size: int | None) -> bool:
    return None not in (size, other_size) and size != other_size


def _distances_to_common_ancestor(
    index: GraphIndex, first: str, second: str
) -> tuple[int, int] | None:
    """Return the number of nodes from each tensor back to their nearest common ancestor."""
    searches = (_AncestorSearch(index, first), _AncestorSearch(index, second))
    while searches[0].queue or searches[1].queue:
        for search, other in (searches, searches[::-1]):
            if not search.queue:
                continue
            tensor = search.queue.popleft()
            if tensor in other.distances:
                return searches[0].distances[tensor], searches[1].distances[tensor]
            search.visit(tensor)
    return None


class _AncestorSearch:
    """A breadth-first search from a tensor to those it is computed from."""

    def __init__(self, index: GraphIndex, tensor: str) -> None:
        self.distances = {tensor: 0}
        self.queue = deque([tensor])
        self._index = index

    def visit(self, tensor: str) -> None:
        """Add the computed inputs of a tensor's producer to the queue."""
        producer = self._index.producers.get(tensor)
        if producer is None:
            return
        for name in producer.inputs:
            if name and name not in self.distances and not self._index.is_constant(name):
                self.distances[name] = self.distances[tensor] + 1
                self.queue.append(name)
