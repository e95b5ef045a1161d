"""Signatures of nodes: hashes of operators, attributes and neighbours, without names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import msgspec
import numpy as np
from onnx import AttributeProto, TensorProto

from qdq.graph.bodies import all_nodes, attribute_bodies
from qdq.graph.index import GraphIndex, Node
from qdq.graph.tensor_sizes import count_value_bytes

#: Stored integers up to this many bytes, such as axes and shapes, are hashed by their values.
LARGEST_VALUE_BYTES = 256

#: Fields of a tensor's message with integers, and the types that they have as raw data.
_INTEGER_FIELDS: dict[int, tuple[str, str]] = {
    TensorProto.INT64: ("int64_data", "<i8"),
    TensorProto.INT32: ("int32_data", "<i4"),
}


class NodeSignature(msgspec.Struct, frozen=True):
    """Hashes of a node and its surroundings.

    They cover the node with its stored inputs, all that it is computed from, and all that is
    computed from it.
    """

    node: int
    ancestors: int
    descendants: int


def sign_nodes(index: GraphIndex) -> list[NodeSignature]:
    """Return the signature of each node of a graph, by position."""
    operators = [_hash_operator(node) for node in index.nodes]
    ancestors = _hash_ancestors(index, operators)
    descendants = _hash_descendants(index, operators)
    signatures = []
    for node, operator in zip(index.nodes, operators, strict=True):
        stored = [_describe_stored(index, name) for name in node.inputs]
        node_hash = hash((operator, *stored))
        position = node.position
        signatures.append(NodeSignature(node_hash, ancestors[position], descendants[position]))
    return signatures


def large_weights(index: GraphIndex, node: Node) -> list[TensorProto]:
    """Return the initializers that a node reads and that are large enough to be unique."""
    weights = []
    for name in node.inputs:
        tensor = index.initializers.get(name)
        if tensor is not None and len(tensor.raw_data) > LARGEST_VALUE_BYTES:
            weights.append(tensor)
    return weights


def _hash_operator(node: Node) -> int:
    attributes = sorted(_describe_attribute(attribute) for attribute in node.proto.attribute)
    return hash((node.op, tuple(attributes)))


def _describe_attribute(attribute: AttributeProto) -> tuple[str, str]:
    if attribute.HasField("t"):
        return attribute.name, repr(_describe_tensor(attribute.t))
    bodies = attribute_bodies(attribute)
    if bodies:
        operators: list[str] = []
        for body in bodies:
            operators.extend(node.op_type for _, node in all_nodes(body))
        return attribute.name, " ".join(operators)
    return attribute.name, attribute.SerializeToString().hex()


def _describe_tensor(tensor: TensorProto) -> tuple[Hashable, ...]:
    """Return the type and dimensions of a stored tensor, and the values of a few integers.

    Values of weights are left out: training may have changed them.
    """
    dims = tuple(tensor.dims)
    if tensor.data_type not in _INTEGER_FIELDS or count_value_bytes(tensor) > LARGEST_VALUE_BYTES:
        return tensor.data_type, dims
    field, dtype = _INTEGER_FIELDS[tensor.data_type]
    listed = np.array(getattr(tensor, field), dtype)
    return tensor.data_type, dims, tensor.raw_data or listed.tobytes()


def _describe_stored(index: GraphIndex, name: str) -> Hashable:
    """Return the description of an initializer or a Constant's value, None for other tensors."""
    tensor = index.initializers.get(name)
    if tensor is None:
        producer = index.producers.get(name)
        if producer is None or producer.op != "Constant":
            return None
        tensor = producer.attribute("value")
    if tensor is None:
        return None
    return _describe_tensor(tensor)


def _hash_ancestors(index: GraphIndex, operators: list[int]) -> list[int]:
    """Return for each node a hash of itself and of all that it is computed from."""
    known: dict[str, Hashable] = {}
    for graph_input in index.inputs.values():  # as declared, so that no shapes are inferred
        tensor_type = graph_input.type.tensor_type
        has_rank = tensor_type.HasField("shape")
        rank = len(tensor_type.shape.dim) if has_rank else None
        known[graph_input.name] = ("input", tensor_type.elem_type, rank)
    hashes = []
    for node, operator in zip(index.nodes, operators, strict=True):
        inputs: list[Hashable] = []
        for name in node.inputs:
            unknown = "outside" if name else ""
            inputs.append(_describe_stored(index, name) or known.get(name, unknown))
        node_hash = hash((operator, *inputs))
        hashes.append(node_hash)
        for slot, name in enumerate(node.outputs):
            if name:
                known[name] = (node_hash, slot)
    return hashes


def _hash_descendants(index: GraphIndex, operators: list[int]) -> list[int]:
    """Return for each node a hash of itself and of all that is computed from it."""
    reader_hashes: defaultdict[str, list[int]] = defaultdict(list)
    for slot, name in enumerate(index.outputs):
        reader_hashes[name].append(hash(("output", slot)))
    hashes = [0] * len(operators)
    for node in reversed(index.nodes):
        position = node.position
        readers: list[Hashable] = []
        for name in node.outputs:
            output_readers = sorted(reader_hashes[name])
            readers.append(tuple(output_readers))
        node_hash = hash((operators[position], tuple(readers)))
        hashes[position] = node_hash
        for slot, name in enumerate(node.inputs):
            reader_hashes[name].append(hash((node_hash, slot)))
    return hashes
