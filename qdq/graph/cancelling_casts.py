"""Casts that cancel: to a wider float type and back."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, TensorProto

from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.pairs import count_readers

_SHORT_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def remove_cancelling_casts(graph: GraphProto, index: GraphIndex) -> None:
    """Remove the Casts of a graph to float32 whose results are cast back, in bodies too.

    A body may cast back what the graph around it casts. `index` is that of the graph.
    """
    widened: dict[str, str] = {}
    _remove_casts_back(graph, index, widened)
    _remove_unread_casts(graph, set(widened))


def _remove_casts_back(graph: GraphProto, index: GraphIndex, widened: dict[str, str]) -> None:
    """Read the tensor before the Cast to float32 in place of what is cast back to its type.

    `widened` holds the tensors before the Casts to float32 of the graphs around, by result. Those
    of this graph are added to it.
    """
    origins: dict[str, str] = {}
    for node, indexed in zip(graph.node, index.nodes, strict=True):
        for name, body in node_bodies(node):
            path = qualified_name(index.path, f"{indexed.label}.{name}")
            _remove_casts_back(body, index.scopes[path], widened)
        if node.op_type != "Cast":
            continue
        tensor, result, to = node.input[0], node.output[0], _read_type(node)
        if to == TensorProto.FLOAT and index.elem_type(tensor) in _SHORT_TYPES:
            widened[result] = tensor
        is_back = tensor in widened and to == index.elem_type(widened[tensor])
        if is_back and result not in index.outputs:
            origins[result] = widened[tensor]
    _redirect(graph, origins)
    _remove_unread_casts(graph, set(origins))


def _redirect(graph: GraphProto, origins: dict[str, str]) -> None:
    for node in graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = origins.get(name, name)
        for _, body in node_bodies(node):
            _redirect(body, origins)


def _remove_unread_casts(graph: GraphProto, results: set[str]) -> None:
    """Remove the Casts with some results that nothing reads, the last ones first, in bodies too."""
    for node in graph.node:
        for _, body in node_bodies(node):
            _remove_unread_casts(body, results)
    positions = [i for i, node in enumerate(graph.node) if results.intersection(node.output)]
    for position in reversed(positions):
        result = graph.node[position].output[0]
        if not count_readers(graph)[result]:
            del graph.node[position]


def _read_type(node: NodeProto) -> int:
    for attribute in node.attribute:
        if attribute.name == "to":
            return int(attribute.i)
    return 0
