"""Nodes in the order that ONNX asks for: each behind those that make what it reads (ONNX IR specification, "Graphs")."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import onnx

from qdq.errors import ModelError


def order_nodes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model with its nodes in order, those of bodies too, and a note that they were not; the model itself where they are.

    Raises ModelError for nodes that need each other's results.
    """
    if all(
        earlier < i
        for graph in _graphs(model.graph)
        for i, needed in enumerate(_needs(graph))
        for earlier in needed
    ):
        return model, ()
    ordered = onnx.ModelProto()
    ordered.CopyFrom(model)
    for graph in _graphs(ordered.graph):
        nodes = [
            onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in _order(graph)
        ]
        del graph.node[:]
        graph.node.extend(nodes)
    return ordered, ("nodes put in the order that ONNX asks for",)


def _order(graph: onnx.GraphProto) -> list[int]:
    try:
        return list(TopologicalSorter(dict(enumerate(_needs(graph)))).static_order())
    except CycleError as error:
        label = graph.node[error.args[1][0]].name or f"#{error.args[1][0]}"
        raise ModelError(
            f"is damaged: node {label} needs its own result; export or download it again"
        ) from error


def _needs(graph: onnx.GraphProto) -> list[set[int]]:
    """Return for each node of a graph the positions of those that make what it reads."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    return [{makers[name] for name in _reads(node) if name in makers} for node in graph.node]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and its bodies, each after those in it."""
    for body in (body for node in graph.node for body in _bodies(node)):
        yield from _graphs(body)
    yield graph


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        body
        for attribute in node.attribute
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, its bodies too."""
    read = set(node.input)
    for body in _bodies(node):
        inside = {name for inner in body.node for name in _reads(inner)} | {
            o.name for o in body.output
        }
        read |= (
            inside
            - {name for inner in body.node for name in inner.output}
            - {i.name for i in body.input}
            - {t.name for t in body.initializer}
        )
    return read
