"""Nodes in the order that ONNX requires: each after those whose results it reads.

Source: ONNX IR specification, "Graphs".
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from onnx import GraphProto, ModelProto, NodeProto

from qdq.errors import ModelError
from qdq.graph.bodies import captured_names, names_captured_by, node_bodies, node_title


def order_nodes(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """Return the model with its nodes and those of its bodies in order, and a note on the change.

    The model itself comes back, without a note, where its nodes are in order.
    Raises ModelError for nodes that need each other's results.
    """
    if _is_sorted(model.graph):
        return model, ()
    ordered = ModelProto()
    ordered.CopyFrom(model)
    _sort_nodes(ordered.graph)
    return ordered, ("nodes put in the order that ONNX asks for",)


def _is_sorted(graph: GraphProto) -> bool:
    """Whether the nodes of a graph and of its bodies are in order."""
    producers = _map_producers(graph)
    for position, node in enumerate(graph.node):
        for name in node.input:
            if producers.get(name, -1) >= position:
                return False
        for _, body in node_bodies(node):
            names = captured_names(body)
            is_behind = all(producers.get(name, -1) < position for name in names)
            if not is_behind or not _is_sorted(body):
                return False
    return True


def _sort_nodes(graph: GraphProto) -> None:
    """Sort the nodes of the bodies of a graph, then its nodes."""
    for node in graph.node:
        for _, body in node_bodies(node):
            _sort_nodes(body)
    order = _find_order(graph)
    nodes = [_copy_node(graph.node[i]) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _copy_node(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _find_order(graph: GraphProto) -> list[int]:
    """Return the positions of a graph's nodes in topological order."""
    # sorted: the order of a set of numbers depends on that in which names were added
    predecessors = dict(enumerate(map(sorted, _find_predecessors(graph))))
    try:
        return list(TopologicalSorter(predecessors).static_order())
    except CycleError as error:
        position = error.args[1][0]
        title = node_title(graph.node[position], position)
        raise ModelError(
            f"the model is damaged: node {title} needs its own result. Export or download it again."
        ) from error


def _find_predecessors(graph: GraphProto) -> list[set[int]]:
    """Return for each node of a graph the positions of the nodes whose results it reads."""
    producers = _map_producers(graph)
    predecessors = []
    for node in graph.node:
        names = names_captured_by(node).union(node.input)
        predecessors.append({producers[name] for name in names if name in producers})
    return predecessors


def _map_producers(graph: GraphProto) -> dict[str, int]:
    """Return the position of the node that computes each tensor of a graph."""
    producers: dict[str, int] = {}
    for position, node in enumerate(graph.node):
        for name in node.output:
            producers[name] = position
    producers.pop("", None)  # an output that is left out
    return producers
