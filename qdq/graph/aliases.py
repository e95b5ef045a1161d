"""Nodes whose result holds the values of their input: what compilers remove or look through."""

from __future__ import annotations

from onnx import TensorProto

from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import ALIASES, ALIASES_OF_ONE_INPUT, ALIASES_OF_ONE_SHAPE
from qdq.graph.shape_inference import known_sizes

FLOAT_TYPES = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
)

_TRAINING_SLOT = 2


def is_alias(index: GraphIndex, node: Node) -> bool:
    """Whether a compiler replaces a node's result by its first input, type and values alike.

    True for Identity, a Dropout outside training, a Cast to the type that its input has, a Sum,
    Max, Min, Mean or Concat of one input, a Transpose that keeps the order of axes, and a Reshape,
    Expand or similar to the shape that its input has. Not for a constant whose result is computed,
    as that of a CastLike is by what it is cast like: no value of it can be read from the file.
    """
    if not _repeats_input(index, node):
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
    types = (index.elem_type(node.inputs[0]), _cast_type(index, node))
    return all(elem_type in FLOAT_TYPES for elem_type in types)


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


def _is_cast(node: Node) -> bool:
    return node.op in ("Cast", "CastLike")


def _keeps_shape(index: GraphIndex, node: Node) -> bool:
    sizes = known_sizes(index.shape(node.inputs[0]))
    return sizes is not None and sizes == known_sizes(index.shape(node.outputs[0]))


def _keeps_type(index: GraphIndex, node: Node) -> bool:
    elem_type = index.elem_type(node.inputs[0])
    return elem_type != 0 and elem_type == _cast_type(index, node)


def _cast_type(index: GraphIndex, cast: Node) -> int:
    """Return the ONNX element type that a Cast or CastLike casts to, 0 where it is not known."""
    if cast.op == "CastLike":
        return index.elem_type(cast.inputs[1])
    return int(cast.attribute("to", 0))


def _may_train(index: GraphIndex, dropout: Node) -> bool:
    """Whether a Dropout (opset 12) has a training mode that is not known to be false."""
    if len(dropout.inputs) <= _TRAINING_SLOT or not dropout.inputs[_TRAINING_SLOT]:
        return False
    training = dropout.inputs[_TRAINING_SLOT]
    return not index.is_constant(training) or bool(index.constant(training).any())
