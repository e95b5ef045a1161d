"""Models that no run of ONNX Runtime comes back from: refused before it is asked.

A tensor that is larger than the memory ends the process, since the system grants the memory and
kills the process that uses it. A Loop without an end takes the time limit.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import GraphProto

from qdq.errors import ModelError
from qdq.graph.index import GraphIndex, Node
from qdq.graph.shape_inference import known_sizes
from qdq.memory import exceeds_memory, format_gigabytes

#: Iterations that no run comes to the end of.
_ENDLESS = 1 << 40

#: The inputs of a Loop: trip count and condition; its body returns the condition first.
_TRIP_COUNT, _CONDITION = 0, 1


def require_runnable(index: GraphIndex) -> None:
    """Raise ModelError for a tensor larger than the memory, and for a Loop without an end."""
    for tensor in index.producers:
        _require_memory(index, tensor)
    for scope in index.scopes.values():
        for node in scope.nodes:
            if node.op == "Loop" and _is_endless(scope, node):
                raise ModelError(
                    f"{index.source.name}: Loop {node.label} has no end: its condition is always "
                    "true and its trip count is too large. Give it an end."
                )


def _require_memory(index: GraphIndex, tensor: str) -> None:
    sizes = known_sizes(index.shape(tensor))
    if sizes is None:
        return
    size = math.prod(sizes) * _item_bytes(index.elem_type(tensor))
    if exceeds_memory(size):
        raise ModelError(
            f"{index.source.name}: tensor {tensor!r} takes {format_gigabytes(size)}, more than the "
            "memory of this machine. Fix the shapes in the model, or use a smaller input."
        )


def _item_bytes(elem_type: int) -> int:
    """Return the bytes of one element, 1 for an unknown type."""
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).itemsize
    except KeyError:
        return 1


def _is_endless(scope: GraphIndex, node: Node) -> bool:
    """Whether a Loop has no trip count or a huge one, and a condition that stays true."""
    trip_count = node.inputs[_TRIP_COUNT] if node.inputs else ""
    if trip_count:
        if not scope.is_constant(trip_count):
            return False
        if int(np.asarray(scope.constant(trip_count)).ravel()[0]) < _ENDLESS:
            return False
    condition = node.inputs[_CONDITION] if len(node.inputs) > _CONDITION else ""
    is_true = _is_true(scope, condition) if condition else True
    return is_true and any(_keeps_condition(body) for _, body in node.bodies)


def _keeps_condition(body: GraphProto) -> bool:
    """Whether a Loop's body returns the condition that it is called with, or true."""
    producers = {output: node for node in body.node for output in node.output}
    stored = {tensor.name: tensor for tensor in body.initializer}
    name = body.output[0].name if body.output else ""
    while name in producers and producers[name].op_type == "Identity":
        name = producers[name].input[0]
    if name in stored:
        return bool(onnx.numpy_helper.to_array(stored[name]).all())
    if name in producers:
        return _is_true_constant(producers[name])
    return len(body.input) > _CONDITION and name == body.input[_CONDITION].name


def _is_true_constant(node: onnx.NodeProto) -> bool:
    if node.op_type != "Constant":
        return False
    values = [onnx.helper.get_attribute_value(attribute) for attribute in node.attribute]
    return any(
        isinstance(value, onnx.TensorProto) and bool(onnx.numpy_helper.to_array(value).all())
        for value in values
    )


def _is_true(scope: GraphIndex, tensor: str) -> bool:
    return scope.is_constant(tensor) and bool(np.asarray(scope.constant(tensor)).all())
