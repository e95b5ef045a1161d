"""Nodes by the float types of their values."""

from __future__ import annotations

from onnx import TensorProto

from qdq.graph.float_types import FloatType
from qdq.graph.index import GraphIndex, Node


def has_float32(index: GraphIndex, node: Node) -> bool:
    """Whether a node that computes reads or writes float32, as far as types are known."""
    if node.op == "Constant":
        return False
    names = (*node.inputs, *node.outputs)
    return any(index.elem_type(name) == TensorProto.FLOAT for name in names if name)


def is_type_cast(index: GraphIndex, node: Node, float_type: FloatType) -> bool:
    """Whether a node casts between float32 and the short type."""
    if node.op != "Cast":
        return False
    ends = {index.elem_type(node.inputs[0]), node.attribute("to", 0)}
    return ends <= {TensorProto.FLOAT, float_type.code}
