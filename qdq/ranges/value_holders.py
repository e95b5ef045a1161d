"""Tensors that hold all values of another one: moved, picked or joined with other values."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from qdq.graph.aliases import keeps_values
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import REPEATS_VALUES
from qdq.graph.patterns import carries_pairs


def iterate_holders(scope: GraphIndex, tensor: str) -> Iterator[str]:
    """Yield the tensors of a graph that hold all values of one, the nearest first.

    The tensor itself is the first.
    """
    pending = deque([tensor])
    known = {tensor}
    while pending:
        holder = pending.popleft()
        yield holder
        for neighbour in _iterate_neighbours(scope, holder):
            if neighbour not in known:
                known.add(neighbour)
                pending.append(neighbour)


def find_joined_parts(scope: GraphIndex, tensor: str) -> tuple[str, ...]:
    """Return the tensors whose values a tensor holds: the inputs of a Concat, else none.

    Operators that keep or pick values may be between the Concat and the tensor.
    """
    producer = scope.producers.get(tensor)
    while producer is not None:
        if producer.op == "Concat":
            return producer.inputs
        if not _is_part_of_input(scope, producer, tensor):
            return ()
        tensor = producer.inputs[0]
        producer = scope.producers.get(tensor)
    return ()


def _iterate_neighbours(scope: GraphIndex, tensor: str) -> Iterator[str]:
    """Yield the inputs and outputs of the nodes at a tensor that hold all of its values."""
    producer = scope.producers.get(tensor)
    if producer is not None and _is_part_of_input(scope, producer, tensor):
        yield producer.inputs[0]
    for consumer, slot in scope.consumers.get(tensor, ()):
        if _keeps_values(scope, consumer, slot):
            yield consumer.outputs[0]


def _is_part_of_input(scope: GraphIndex, producer: Node, tensor: str) -> bool:
    """Whether all values of a node's output are among those of its first input."""
    if not carries_pairs(scope, producer):
        return False
    return producer.op == "Split" or tensor == producer.outputs[0]


def _keeps_values(scope: GraphIndex, consumer: Node, slot: int) -> bool:
    """Whether the result of a node holds every value of its input at a slot."""
    if consumer.op == "Concat":
        return slot >= 0
    return slot == 0 and (consumer.op in REPEATS_VALUES or keeps_values(scope, consumer))
