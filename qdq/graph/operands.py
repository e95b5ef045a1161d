"""The operands of weighted operators: their slots, and the axes of their channels.

Axes follow the ONNX operator specification's weight layouts and TensorRT's per-channel
requirement (quantized types, explicit quantization): Conv 0; Gemm by `transB`; MatMul the
last axis of the right operand; LSTM, GRU and RNN the gate rows of W; Einsum the only label that the
weight alone has and the output keeps. With any other axis TensorRT-RTX 1.7.1 multiplies in float.
ConvTranspose has none: TensorRT 8 requires axis 0, later releases axis 1, and grouped ones fail to
build, so one scale for the tensor is the form that every release accepts.

The recurrent operators multiply twice; only the product of the whole sequence with W counts here.
The product of the hidden state with R stays in float whatever is before R, since no pair can be on
a state inside the operator (observed with TensorRT-RTX 1.7.1).
"""

from __future__ import annotations

import math
import re

import numpy as np

from qdq.arrays import Array
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operators import CONVOLUTIONS, RECURRENT, WEIGHTED
from qdq.graph.shape_inference import Dims

_DATA_SLOT = 0
_WEIGHT_SLOT = 1
_OPERAND_SLOTS = (_DATA_SLOT, _WEIGHT_SLOT)
_OPERAND_COUNT = 2
_MATRIX_RANK = 2

#: The least number of axes of a weight, by operator.
_LEAST_RANKS = {
    **dict.fromkeys((*CONVOLUTIONS, *RECURRENT), 3),
    "Gemm": _MATRIX_RANK,
}

#: The axis of a recurrent operator's W that holds the rows of its gates.
_GATE_AXIS = 1
_PRODUCT_EQUATION = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]*)")


def operands(index: GraphIndex, node: Node) -> tuple[Edge, ...]:
    """Return the two edges that a weighted node multiplies.

    The result is empty for other nodes, integer matrix products, sparse weights, and nodes that no
    output of the model depends on.
    """
    if node.op not in WEIGHTED or len(node.inputs) < _OPERAND_COUNT:
        return ()
    if node.op == "Einsum" and einsum_labels(node) is None:
        return ()
    tensors = node.inputs[:_OPERAND_COUNT]
    for tensor in tensors:
        if tensor in index.sparse_weights or _is_known_integer(index, tensor):
            return ()
    if not _can_multiply(node, index.shape(tensors[_WEIGHT_SLOT])):
        return ()
    if all(index.is_constant(tensor) for tensor in tensors) or not index.is_live(node):
        return ()
    return tuple(index.edge(node, slot) for slot in _OPERAND_SLOTS)


def _is_known_integer(index: GraphIndex, tensor: str) -> bool:
    """Whether a tensor's type is known and is none that layers multiply in."""
    return index.elem_type(tensor) != 0 and not index.is_float(tensor)


def _can_multiply(node: Node, shape: Dims | None) -> bool:
    """Whether a weight of this shape has values, and the axes that its operator defines."""
    if shape is None:
        return True
    return 0 not in shape and len(shape) >= _LEAST_RANKS.get(node.op, 0)


def is_operand(index: GraphIndex, edge: Edge) -> bool:
    """Whether the edge is one of the two that a weighted node multiplies."""
    return edge in operands(index, index.node(edge))


def channel_axis(index: GraphIndex, edge: Edge) -> int | None:
    """Return the axis of a weight that holds output channels, or None where one scale is required.

    None for ConvTranspose, for one-dimensional weights, for an Einsum that keeps no or several
    labels of the weight alone, and for edges that are not operands.
    """
    node = index.node(edge)
    is_weight = edge.slot == _WEIGHT_SLOT
    if node.op == "Conv":
        return 0 if is_weight else None
    if node.op in RECURRENT:
        return _GATE_AXIS if is_weight else None
    if node.op == "Gemm":
        return _gemm_axis(node, edge.slot)
    if node.op == "Einsum":
        return _einsum_axis(node, edge.slot)
    rank = index.rank(edge.tensor)
    if node.op != "MatMul" or rank is None or rank < _MATRIX_RANK:
        return None
    return rank - 1 if is_weight else rank - 2


def block_axis(index: GraphIndex, edge: Edge) -> int | None:
    """Return the axis of a weight that a product sums over, where blocks of it can share a scale.

    That is the second factor of a Gemm or MatMul, if it is a matrix; None for other edges.
    """
    node = index.node(edge)
    if edge.slot != _WEIGHT_SLOT or index.rank(edge.tensor) != _MATRIX_RANK:
        return None
    if node.op == "Gemm":
        return 1 - _gemm_axis(node, edge.slot)
    return 0 if node.op == "MatMul" else None


def has_whole_blocks(index: GraphIndex, edge: Edge, block_size: float) -> bool:
    """Whether the summed axis of a weight holds two or more whole blocks.

    TensorRT-RTX 1.7.1 dequantizes a weight of one block in a separate kernel.
    """
    axis = block_axis(index, edge)
    shape = index.shape(edge.tensor)
    size = shape[axis] if shape is not None and axis is not None else None
    return size is not None and size > block_size and size % block_size == 0


def einsum_labels(node: Node) -> tuple[str, str, str] | None:
    """Return the labels of both operands and the result of an Einsum that is a matrix product.

    None for other nodes. A product sums over a label that both operands have; repeated labels and
    ellipses are not supported.
    """
    equation = node.attribute("equation", b"")
    if isinstance(equation, bytes):
        equation = equation.decode(errors="replace")
    match = _PRODUCT_EQUATION.fullmatch(str(equation).replace(" ", ""))
    if match is None or len(node.inputs) != _OPERAND_COUNT:
        return None
    first, second, result = match.groups()
    shared = set(first) & set(second)
    if shared <= set(result):
        return None
    if _repeats_label(first) or _repeats_label(second) or _repeats_label(result):
        return None
    return first, second, result


def _repeats_label(labels: str) -> bool:
    return len(set(labels)) < len(labels)


def _einsum_axis(node: Node, slot: int) -> int | None:
    labels = einsum_labels(node)
    if labels is None or slot not in _OPERAND_SLOTS:
        return None
    operand = labels[slot]
    other = labels[1 - slot]
    result = labels[2]
    free = [label for label in operand if label in result and label not in other]
    return operand.index(free[0]) if len(free) == 1 else None


def _gemm_axis(node: Node, slot: int) -> int:
    if slot == _DATA_SLOT:
        return 1 if node.attribute("transA", 0) else 0
    return 0 if node.attribute("transB", 0) else 1


def channel_amax(weight: Array, axis: int | None) -> Array:
    """Return the largest absolute value of a weight, or of each slice along `axis`.

    The result is a float32 vector.
    """
    reduced = tuple(other for other in range(weight.ndim) if other != axis)
    highest = weight.max(axis=reduced, initial=0.0)
    lowest = weight.min(axis=reduced, initial=0.0)
    amax = np.maximum(highest, -lowest)
    return np.atleast_1d(amax).astype(np.float32)


def split_blocks(weight: Array, axis: int, block_size: int) -> Array:
    """Return the blocks of a weight along an axis as rows, in the order of a tensor of them."""
    before, after = weight.shape[:axis], weight.shape[axis + 1 :]
    blocks = weight.reshape(*before, -1, block_size, *after)
    blocks = np.moveaxis(blocks, axis + 1, -1)
    return blocks.reshape(-1, block_size)


def input_channel_axis(index: GraphIndex, node: Node) -> int | None:
    """Return the axis of a weighted node's first input that the product sums over.

    None where it is not known.
    """
    if node.op == "Conv":
        return 1
    if node.op == "Gemm":
        return 0 if node.attribute("transA", 0) else 1
    if node.op in RECURRENT:
        return 2
    if node.op != "MatMul":
        return None
    data, weight = node.inputs[:_OPERAND_COUNT]
    if index.rank(weight) != _MATRIX_RANK:
        return None
    data_rank = index.rank(data) or 0
    return data_rank - 1


def reshape_by_channels(node: Node, weight: Array) -> Array | None:
    """Return a weight of slot 1 as [output channels, input channels of one group, taps].

    None for other layouts.
    """
    if weight.ndim < _LEAST_RANKS.get(node.op, 0):
        return None
    if node.op == "Conv":
        outputs, inputs, *taps = weight.shape
        return weight.reshape(outputs, inputs, math.prod(taps))
    rows: Array
    if node.op in RECURRENT and len(weight) == 1:
        # A bidirectional one has two: both directions share the scales of their gate rows.
        rows = weight[0]
    elif weight.ndim != _MATRIX_RANK or node.op == "Einsum":
        return None
    elif node.op == "Gemm" and node.attribute("transB", 0):
        rows = weight
    else:
        rows = weight.T
    return rows[:, :, None]
