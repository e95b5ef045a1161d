"""Bodies of If, Loop and Scan, and the labels of nodes in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import numpy_helper

from qdq.arrays import Array
from qdq.errors import ModelError, first_line


def qualified_name(graph: str, name: str) -> str:
    """Return a name behind the path of the body it stands in; in the main graph the name alone."""
    return f"{graph}/{name}" if graph else name


def node_bodies(node: onnx.NodeProto) -> tuple[tuple[str, onnx.GraphProto], ...]:
    """Return the graphs that a node carries as attributes, by attribute name."""
    single = [(a.name, a.g) for a in node.attribute if a.HasField("g")]
    listed = [(f"{a.name}.{i}", g) for a in node.attribute for i, g in enumerate(a.graphs)]
    return tuple(single + listed)


def node_labels(graph: onnx.GraphProto) -> list[str]:
    """Return a unique label for each node: its name, or its position where the name is empty or taken."""
    times = Counter(node.name for node in graph.node)
    taken, labels = set(times), []
    for i, node in enumerate(graph.node):
        label = node.name
        while not label or times[label] > 1 or (label != node.name and label in taken):
            label = f"{label}#{i}"
        taken.add(label)
        labels.append(label)
    return labels


def all_nodes(graph: onnx.GraphProto, path: str = "") -> Iterator[tuple[str, onnx.NodeProto]]:
    """Yield the nodes of a graph, then those of its bodies, each with its label behind the body's path."""
    labels = node_labels(graph)
    yield from (
        (qualified_name(path, label), node) for label, node in zip(labels, graph.node, strict=True)
    )
    for label, node in zip(labels, graph.node, strict=True):
        for name, body in node_bodies(node):
            yield from all_nodes(body, qualified_name(path, f"{label}.{name}"))


def captured_names(body: onnx.GraphProto) -> set[str]:
    """Return the names that a body reads from the graphs around it."""
    made = (
        {i.name for i in body.input}
        | {t.name for t in body.initializer}
        | {o for n in body.node for o in n.output}
    )
    read = {i for n in body.node for i in n.input} | {o.name for o in body.output}
    for node in body.node:
        for _, inner in node_bodies(node):
            read |= captured_names(inner)
    return read - made - {""}


def read_tensor_values(tensor: onnx.TensorProto, model: str, folder: Path | None) -> Array:
    """Return the values of a tensor that lies in a model, or in a file beside it; raises ModelError where they cannot be read."""
    try:
        return numpy_helper.to_array(tensor, base_dir=str(folder) if folder else "")
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise ModelError(
            f"{model}: the values of {tensor.name!r} cannot be read: {first_line(error)}; export the model again"
        ) from error
