"""Parameters that an operator reads in float32 beside data of another float type.

BatchNormalization has separate types for data, for scale and shift, and for mean and variance since
opset 15 (ONNX operator changelog). TensorRT-RTX 1.7.1 builds the same engine with parameters in
float32, and ONNX Runtime 1.31 runs it.
"""

from __future__ import annotations

import math

import numpy as np

from qdq.errors import ModelError
from qdq.graph.float_types import FloatType
from qdq.graph.index import GraphIndex, Node
from qdq.graph.opset import default_opset
from qdq.graph.shape_inference import known_sizes

#: The first opset with separate types, and the slots of each type.
_SEPARATE_OPSET = 15
_SEPARATE_SLOTS = ((1, 2), (3, 4))

#: The largest constant whose values are read: enough for tables and epsilons.
_MOST_VALUES = 1 << 26


def can_stay_float32(index: GraphIndex, node: Node, slot: int) -> bool:
    """Whether an input of a node may be float32 where its data is not."""
    if node.op != "BatchNormalization" or slot == 0:
        return False
    return default_opset(index.source.model) >= _SEPARATE_OPSET


def find_wide_slots(index: GraphIndex, node: Node, float_type: FloatType) -> tuple[int, ...]:
    """Return the inputs of a node that stay float32, because the type does not hold their values.

    Inputs of one type stay together.
    """
    wide: list[int] = []
    for slots in _SEPARATE_SLOTS:
        if not can_stay_float32(index, node, slots[0]):
            continue
        values = [constant_amax(index, node.inputs[slot]) for slot in slots]
        if any(value is not None and not fits_type(value, float_type) for value in values):
            wide.extend(slots)
    return tuple(wide)


def fits_type(amax: float, float_type: FloatType) -> bool:
    """Whether a type holds values up to `amax` without an overflow and without losing all."""
    is_lost = 0 < amax < float_type.least / 2
    return not is_lost and not float_type.largest < amax < math.inf


def constant_amax(index: GraphIndex, tensor: str) -> float | None:
    """Return the largest absolute value of a constant of floats; None for other tensors."""
    if not index.is_constant(tensor) or not index.is_float(tensor):
        return None
    sizes = known_sizes(index.shape(tensor))
    if sizes is not None and math.prod(sizes) > _MOST_VALUES:
        return None
    try:
        values = index.constant(tensor)
    except ModelError:
        return None
    if values.size == 0:
        return None
    return float(np.max(np.abs(np.asarray(values, np.float32))))
