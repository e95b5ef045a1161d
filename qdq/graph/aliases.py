"""Nodes whose result holds the values of their input: what compilers remove or look through.

A Cast between float types keeps the values but not the type. TensorRT-RTX 1.7.1 multiplies in INT8
behind some Casts only: `can_cast_dequantized` says which.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import TensorProto

from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import (
    ALIASES,
    ALIASES_OF_ONE_INPUT,
    ALIASES_OF_ONE_SHAPE,
    MOVES_VALUES,
)
from qdq.graph.shape_inference import known_sizes

FLOAT_TYPES = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
)

#: The bytes of a value of each float type.
_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.DOUBLE: 8,
}

_TRAINING_SLOT = 2


def is_alias(index: GraphIndex, node: Node) -> bool:
    """Whether a compiler replaces a node's result by its first input, type and values alike.

    True for Identity, a Dropout outside training, a Cast to the type that its input has, a Sum,
    Max, Min, Mean or Concat of one input, a Transpose that keeps the order of axes, and a Reshape,
    Expand or similar to the shape that its input has. Not for a constant whose result is computed,
    as that of a CastLike is by what it is cast like: no value of it can be read from the file.
    """
    if not _repeats_input(index, node) or node.bodies:  # a damaged model may have both
        return False
    return index.is_constant(node.outputs[0]) or not index.is_constant(node.inputs[0])


def _repeats_input(index: GraphIndex, node: Node) -> bool:
    if node.op == "Dropout":
        return not _may_train(index, node)
    if node.op in ALIASES:
        return True
    if node.op in ALIASES_OF_ONE_INPUT:
        return len(node.inputs) == 1
    if node.op == "Transpose":
        order = list(node.attribute("perm", ()))
        return bool(order) and order == sorted(order)
    if node.op in ALIASES_OF_ONE_SHAPE:
        return _keeps_shape(index, node)
    return _is_cast(node) and _keeps_type(index, node)


def is_float_cast(index: GraphIndex, node: Node) -> bool:
    """Whether a node casts between float types: float32, float16, bfloat16 and float64."""
    if not _is_cast(node):
        return False
    types = (index.elem_type(node.inputs[0]), cast_type(index, node))
    return all(elem_type in FLOAT_TYPES for elem_type in types)


def keeps_values(index: GraphIndex, node: Node) -> bool:
    """Whether the result of a node holds each value of its first input once.

    True for operators that only move values, for aliases, and for Casts between float types.
    """
    return node.op in MOVES_VALUES or is_alias_or_float_cast(index, node)


def is_alias_or_float_cast(index: GraphIndex, node: Node) -> bool:
    """Whether the result of a node is its first input, perhaps in another float type."""
    return is_alias(index, node) or is_float_cast(index, node)


def cast_type(index: GraphIndex, node: Node) -> int:
    """Return the ONNX type that a node casts to; 0 for other nodes."""
    if node.op == "Cast":
        return int(node.attribute("to", 0))
    return index.elem_type(node.inputs[1]) if node.op == "CastLike" else 0


def can_cast_dequantized(types: Iterable[int]) -> bool:
    """Whether a layer multiplies in INT8 behind a DQ of the first type and Casts to the others.

    Built with TensorRT-RTX 1.7.1 for sm86, Conv, Gemm and MatMul do if the Casts come down to none
    or to one from float32, on activations as on weights. A Cast and its way back cancel unless the
    first of them narrows: they round. Behind a DQ of float16 and a Cast to float32 or bfloat16 a
    Conv runs in float.
    """
    remaining: list[int] = []
    for elem_type in types:
        if remaining and elem_type == remaining[-1]:
            continue
        if elem_type in remaining[-2:-1] and _BYTES[remaining[-1]] >= _BYTES[elem_type]:
            remaining.pop()
        else:
            remaining.append(elem_type)
    return not remaining[1:] or (remaining[0] == TensorProto.FLOAT and not remaining[2:])


def find_origin(index: GraphIndex, tensor: str) -> str:
    """Return the tensor that a tensor is an alias of: itself where no alias computes it.

    The alias, and the tensor, may be in a graph around a body.
    """
    while tensor:
        scope = index.defining_scope(tensor)
        producer = scope.producers.get(tensor)
        if producer is None or tensor != producer.outputs[0] or not is_alias(scope, producer):
            return tensor
        tensor = producer.inputs[0]
    return tensor


def find_tensor_before_casts(index: GraphIndex, tensor: str) -> str:
    """Return the tensor of the graph whose values, perhaps in another float type, a tensor has."""
    producer = index.producers.get(tensor)
    while producer is not None and is_float_cast(index, producer):
        tensor = producer.inputs[0]
        producer = index.producers.get(tensor)
    return tensor


def find_producer_before_casts(index: GraphIndex, tensor: str) -> Node | None:
    """Return the node whose result, perhaps in another float type, is a tensor of the graph."""
    return index.producers.get(find_tensor_before_casts(index, tensor))


def _is_cast(node: Node) -> bool:
    return node.op in ("Cast", "CastLike")


def _keeps_shape(index: GraphIndex, node: Node) -> bool:
    sizes = known_sizes(index.shape(node.inputs[0]))
    return sizes is not None and sizes == known_sizes(index.shape(node.outputs[0]))


def _keeps_type(index: GraphIndex, node: Node) -> bool:
    elem_type = index.elem_type(node.inputs[0])
    return elem_type != 0 and elem_type == cast_type(index, node)


def _may_train(index: GraphIndex, dropout: Node) -> bool:
    """Whether a Dropout (opset 12) has a training mode that is not known to be false."""
    if len(dropout.inputs) <= _TRAINING_SLOT or not dropout.inputs[_TRAINING_SLOT]:
        return False
    training = dropout.inputs[_TRAINING_SLOT]
    return not index.is_constant(training) or bool(index.constant(training).any())
