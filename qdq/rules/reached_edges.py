"""The edges that a tensor reaches through operators that keep its values as they are."""

from __future__ import annotations

from collections import deque

from onnx import TensorProto

from qdq.graph.aliases import is_float_cast
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Edge, Node
from qdq.graph.operators import MOVES_VALUES


def find_pool_ends(index: CompilerView, pool: Node) -> tuple[Edge, ...]:
    """Return the edges that a pool's output reaches through moves; for a MaxPool also Concat.

    Casts from float32 are passed too: they are behind a pair with scales in float32. Empty where
    the output reaches a graph output or a body.
    """
    through: tuple[str, ...] = MOVES_VALUES
    if pool.op == "MaxPool":
        through = (*MOVES_VALUES, "Concat")
    return find_reached_edges(index, pool.outputs[0], through)


def find_reached_edges(
    index: CompilerView, start: str, through: tuple[str, ...]
) -> tuple[Edge, ...]:
    """Return the edges that a tensor reaches through some operators.

    Empty where one of the tensors on the way is a graph output, is read in a body or is unread.
    """
    queue = deque([start])
    visited = {start}
    reached: list[Edge] = []
    while queue:
        tensor = queue.popleft()
        readers = _value_readers(index, tensor)
        if not readers or tensor in index.outputs or _is_read_in_body(index, tensor):
            return ()
        for edge in readers:
            node = index.node(edge)
            if not _passes_on(index, edge, through):
                reached.append(edge)
                continue
            output = node.outputs[0]
            if output not in visited:
                visited.add(output)
                queue.append(output)
    return tuple(reached)


def _value_readers(index: CompilerView, tensor: str) -> list[Edge]:
    """Return the live edges that read a tensor's values; a Shape reads only its shape."""
    readers: list[Edge] = []
    for node, slot in index.live_readers(tensor):
        if slot >= 0 and node.op != "Shape":
            readers.append(index.edge(node, slot))
    return readers


def _is_read_in_body(index: CompilerView, tensor: str) -> bool:
    readers = index.live_readers(tensor)
    return any(slot < 0 for _, slot in readers)


def _passes_on(index: CompilerView, edge: Edge, through: tuple[str, ...]) -> bool:
    """Whether a node passes on the values of an edge: of moves the first input, of Concat all.

    A Cast from float32 to another float type passes on them too.
    """
    node = index.node(edge)
    if is_float_cast(index, node):
        return index.elem_type(edge.tensor) == TensorProto.FLOAT
    if node.op not in through:
        return False
    return edge.slot == 0 or node.op == "Concat"
