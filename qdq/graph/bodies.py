"""Bodies of If, Loop and Scan: how to walk through them, and the labels of nodes in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    numpy_helper,
)
from onnx.checker import ValidationError

from qdq.arrays import Array
from qdq.errors import ModelError, first_line

#: The types of attributes that are no graphs. Old files state none.
_PLAIN_TYPES = frozenset(AttributeProto.AttributeType.values()) - {
    AttributeProto.UNDEFINED,
    AttributeProto.GRAPH,
    AttributeProto.GRAPHS,
}

#: The types of attributes that are numbers or text.
_NUMBER_TYPES = frozenset(
    (
        AttributeProto.FLOAT,
        AttributeProto.INT,
        AttributeProto.STRING,
        AttributeProto.FLOATS,
        AttributeProto.INTS,
        AttributeProto.STRINGS,
    )
)

_Named = NodeProto | TensorProto | ValueInfoProto | AttributeProto


def qualified_name(graph: str, name: str) -> str:
    """Return a name after the path of the body it is in; in the main graph the name alone."""
    return f"{graph}/{name}" if graph else name


def list_names(items: Iterable[_Named]) -> list[str]:
    """Return the names of some nodes, attributes, tensors, inputs or outputs."""
    return [item.name for item in items]


def attribute_bodies(attribute: AttributeProto) -> list[GraphProto]:
    """Return the graphs that an attribute holds."""
    bodies = list(attribute.graphs)
    if attribute.HasField("g"):
        bodies.insert(0, attribute.g)
    return bodies


def node_bodies(node: NodeProto) -> tuple[tuple[str, GraphProto], ...]:
    """Return the graphs that a node carries as attributes, by attribute name."""
    single: list[tuple[str, GraphProto]] = []
    listed: list[tuple[str, GraphProto]] = []
    for attribute in node.attribute:
        if attribute.type in _PLAIN_TYPES:
            continue
        if attribute.HasField("g"):
            single.append((attribute.name, attribute.g))
        for i, body in enumerate(attribute.graphs):
            listed.append((f"{attribute.name}.{i}", body))
    return (*single, *listed)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all bodies in it, each before the bodies inside it."""
    yield graph
    for node in graph.node:
        for _, body in node_bodies(node):
            yield from all_graphs(body)


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every tensor that a graph and its bodies store: initializers and attributes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from node_tensors(graph.node)


def node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Yield every tensor in the attributes of some nodes, those in their bodies included."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type in _NUMBER_TYPES:
                continue
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in _sparse_tensors(attribute):
                yield from (sparse.values, sparse.indices)
            for body in attribute_bodies(attribute):
                yield from all_tensors(body)


def _sparse_tensors(attribute: AttributeProto) -> list[SparseTensorProto]:
    sparse_tensors = list(attribute.sparse_tensors)
    if attribute.HasField("sparse_tensor"):
        sparse_tensors.insert(0, attribute.sparse_tensor)
    return sparse_tensors


def all_nodes(graph: GraphProto, path: str = "") -> Iterator[tuple[str, NodeProto]]:
    """Yield the nodes of a graph, then those of its bodies, each with its qualified label."""
    labels = node_labels(graph)
    for label, node in zip(labels, graph.node, strict=True):
        yield qualified_name(path, label), node
    for label, node in zip(labels, graph.node, strict=True):
        for name, body in node_bodies(node):
            yield from all_nodes(body, qualified_name(path, f"{label}.{name}"))


def node_title(node: NodeProto, position: int) -> str:
    """Return how messages name a node: by its name, or by its position where that is empty."""
    return node.name or f"#{position}"


def node_labels(graph: GraphProto) -> list[str]:
    """Return a unique label for each node: its name.

    A node whose name is empty or occurs more than once is labelled by its position too.
    """
    return make_labels(list_names(graph.node))


def make_labels(names: list[str]) -> list[str]:
    """Return the unique labels of nodes of some names, as `node_labels` does."""
    taken = set(names)
    if len(taken) == len(names) and "" not in taken:
        return names
    occurrences = Counter(names)
    labels: list[str] = []
    for i, name in enumerate(names):
        label = name
        if not label or occurrences[label] > 1:
            label = f"{label}#{i}"
            while label in taken:
                label = f"{label}#{i}"
        taken.add(label)
        labels.append(label)
    return labels


def captured_names(body: GraphProto) -> set[str]:
    """Return the names that a body reads from the graphs around it."""
    defined = {*list_names(body.input), *list_names(body.initializer)}
    read = set(list_names(body.output))
    for node in body.node:
        defined.update(node.output)
        read.update(node.input)
        read |= names_captured_by(node)
    return read - defined - {""}


def names_captured_by(node: NodeProto) -> set[str]:
    """Return the names that the bodies of a node read from the graphs around them."""
    names: set[str] = set()
    for _, body in node_bodies(node):
        names |= captured_names(body)
    return names


def read_tensor_values(tensor: TensorProto, model: str, folder: Path | None) -> Array:
    """Return the values of a tensor that a model or a file beside it stores.

    Raises ModelError where they cannot be read.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        external = tensor
        tensor = TensorProto()  # up to onnx 1.21, to_array stores what the file holds in it
        tensor.CopyFrom(external)
    try:
        return numpy_helper.to_array(tensor, base_dir=str(folder) if folder else "")
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, ValidationError) as error:
        raise ModelError(
            f"{model}: the values of {tensor.name!r} cannot be read: {first_line(error)}. "
            "Export the model again."
        ) from error


def read_constant(node: NodeProto, model: str, folder: Path | None) -> Array | None:
    """Return the tensor of a Constant node, dense where it is sparse, None where it has none.

    Raises ModelError where its values cannot be read.
    """
    for attribute in node.attribute:
        if attribute.name == "value":
            return read_tensor_values(attribute.t, model, folder)
        if attribute.name == "sparse_value":
            return _read_sparse_values(attribute.sparse_tensor, model, folder)
    return None


def _read_sparse_values(sparse: SparseTensorProto, model: str, folder: Path | None) -> Array:
    values = read_tensor_values(sparse.values, model, folder)
    indices = read_tensor_values(sparse.indices, model, folder)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.flat[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
