"""Nodes in the order that ONNX asks for: each behind those that make what it reads (ONNX IR specification, "Graphs")."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import onnx

from qdq.errors import ModelError


def order_nodes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model with its main graph's nodes in order, and a note that they were not; the model itself where they are.

    Raises ModelError for nodes that need each other's results.
    """
    graph = model.graph
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{makers[name] for name in _reads(node) if name in makers} for node in graph.node]
    if all(earlier < i for i, needed in enumerate(needs) for earlier in needed):
        return model, ()
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        label = graph.node[error.args[1][0]].name or f"#{error.args[1][0]}"
        raise ModelError(f"is damaged: node {label} needs its own result; export or download it again") from error
    ordered = onnx.ModelProto()
    ordered.CopyFrom(model)
    del ordered.graph.node[:]
    ordered.graph.node.extend(graph.node[i] for i in order)
    return ordered, ("nodes put in the order that ONNX asks for",)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, its bodies too."""
    read = set(node.input)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inside = {name for inner in body.node for name in _reads(inner)} | {o.name for o in body.output}
            read |= inside - {name for inner in body.node for name in inner.output} - {i.name for i in body.input} - {t.name for t in body.initializer}
    return read
