"""Neighbours of a node: the producers of its inputs and the readers of its output."""

from __future__ import annotations

from collections.abc import Iterable

from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex, Node

_Operators = tuple[str, ...]


def find_input_producer(index: CompilerView, node: Node, operators: _Operators) -> Node | None:
    """Return the first node of some operators that makes an input of a node, also by a Cast."""
    for tensor in node.inputs:
        producer = index.producers.get(tensor)
        while producer is not None and producer.op == "Cast":
            producer = index.producers.get(producer.inputs[0])
        if producer is not None and producer.op in operators:
            return producer
    return None


def list_input_producers(
    index: CompilerView, nodes: Iterable[Node], operators: _Operators
) -> list[Node]:
    """Return the nodes of some operators that make inputs of some nodes."""
    producers = []
    for node in nodes:
        for tensor in node.inputs:
            producer = index.producers.get(tensor)
            if producer is not None and producer.op in operators:
                producers.append(producer)
    return producers


def list_readers(index: CompilerView, nodes: Iterable[Node], operators: _Operators) -> list[Node]:
    """Return the nodes of some operators that read the first outputs of some nodes."""
    readers = []
    for node in nodes:
        for reader, _ in index.live_readers(node.outputs[0]):
            if reader.op in operators:
                readers.append(reader)
    return readers


def has_constant_input(index: GraphIndex, node: Node) -> bool:
    """Whether one of a node's inputs is constant."""
    return any(index.is_constant(tensor) for tensor in node.inputs)
