"""The operands of weighted operators: which slots are multiplied, and which axis of a weight is the output channel.

Axes follow the ONNX operator specification's weight layouts and TensorRT's per-channel
requirement (quantized types, explicit quantization): Conv 0; Gemm by `transB`; MatMul the
last axis of the right operand; LSTM, GRU and RNN the gate rows of W; Einsum the one label that the
weight alone has and the output keeps. With any other axis TensorRT-RTX 1.7.1 multiplies in float.
ConvTranspose has none: TensorRT 8 wants axis 0, later releases axis 1, and grouped ones fail to
build, so one scale for the tensor is the form every release takes.

The recurrent operators multiply twice; only the product of the whole sequence with W is counted
here. The product of the hidden state with R stays in float whatever stands before R, since no
pair can stand on a state inside the operator (seen with TensorRT-RTX 1.7.1).
"""

from __future__ import annotations

import re

import numpy as np

from qdq.arrays import Array
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operators import RECURRENT, WEIGHTED

_DATA, _WEIGHT = 0, 1
_GATE_ROWS = 1
_TWO_TERMS = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]*)")


def operands(index: GraphIndex, node: Node) -> tuple[Edge, ...]:
    """Return the two edges that a weighted node multiplies; none for other nodes, integer matrix products or sparse weights."""
    if node.op not in WEIGHTED or len(node.inputs) < 2:  # noqa: PLR2004 two operands
        return ()
    if node.op == "Einsum" and einsum_labels(node) is None:
        return ()
    edges = tuple(index.edge(node, slot) for slot in (_DATA, _WEIGHT))
    typed = [index.elem_type(e.tensor) for e in edges]
    if any(t and not index.is_float(e.tensor) for t, e in zip(typed, edges, strict=True)):
        return ()
    if all(index.is_constant(e.tensor) for e in edges) or any(
        e.tensor in index.sparse for e in edges
    ):
        return ()
    return edges


def is_operand(index: GraphIndex, edge: Edge) -> bool:
    """Whether the edge is one of the two that a weighted node multiplies."""
    return edge in operands(index, index.node(edge))


def channel_axis(index: GraphIndex, edge: Edge) -> int | None:
    """Return the axis of a weight that holds output channels, or None where one scale must do.

    None for ConvTranspose, for one-dimensional weights, for an Einsum that keeps no or several
    labels of the weight alone, and for edges that are no operand.
    """
    node = index.node(edge)
    rank = index.rank(edge.tensor)
    if node.op == "Conv":
        return 0 if edge.slot == _WEIGHT else None
    if node.op in RECURRENT:
        return _GATE_ROWS if edge.slot == _WEIGHT else None
    if node.op == "Gemm":
        return _gemm_axis(node, edge.slot)
    if node.op == "Einsum":
        return _einsum_axis(node, edge.slot)
    if node.op == "MatMul" and rank is not None and rank > 1:
        return rank - 1 if edge.slot == _WEIGHT else rank - 2
    return None


def einsum_labels(node: Node) -> tuple[str, str, str] | None:
    """Return the labels of both operands and the result of an Einsum that is a matrix product, else None.

    A product sums over a label that both operands have; repeated labels and ellipses are not followed.
    """
    equation = node.attribute("equation", b"")
    found = _TWO_TERMS.fullmatch(
        (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    )
    if found is None or len(node.inputs) != 2:  # noqa: PLR2004 two operands
        return None
    left, right, result = found.groups()
    summed = (set(left) & set(right)) - set(result)
    if not summed or any(len(set(term)) < len(term) for term in (left, right, result)):
        return None
    return left, right, result


def _einsum_axis(node: Node, slot: int) -> int | None:
    labels = einsum_labels(node)
    if labels is None or slot > _WEIGHT:
        return None
    own, other, result = labels[slot], labels[1 - slot], labels[2]
    free = [label for label in own if label in result and label not in other]
    return own.index(free[0]) if len(free) == 1 else None


def _gemm_axis(node: Node, slot: int) -> int:
    if slot == _DATA:
        return 1 if node.attribute("transA", 0) else 0
    return 0 if node.attribute("transB", 0) else 1


def channel_amax(weight: Array, axis: int | None) -> Array:
    """Return the largest absolute value of a weight, or of each slice along `axis`, as a float32 vector."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    largest = np.maximum(
        weight.max(axis=others, initial=0.0), -weight.min(axis=others, initial=0.0)
    )
    return np.atleast_1d(largest).astype(np.float32)


def input_channel_axis(index: GraphIndex, node: Node) -> int | None:
    """Return the axis of a weighted node's first input that is summed over with the weight, or None where that is not known."""
    if node.op == "Conv":
        return 1
    if node.op == "Gemm":
        return 0 if node.attribute("transA", 0) else 1
    if node.op in RECURRENT:
        return 2
    if node.op != "MatMul" or index.rank(node.inputs[1]) != 2:  # noqa: PLR2004 a matrix
        return None
    return (index.rank(node.inputs[0]) or 0) - 1


def reshape_by_channels(node: Node, weight: Array) -> Array | None:
    """Return a weight of slot 1 as [output channels, input channels of one group, taps], or None for other layouts."""
    if node.op == "Conv":
        return weight.reshape(weight.shape[0], weight.shape[1], -1)
    if (
        node.op in RECURRENT and len(weight) == 1
    ):  # both directions share the scales of their gate rows
        rows: Array = weight[0]
        return rows[:, :, None]
    if weight.ndim != 2 or node.op == "Einsum":  # noqa: PLR2004 a matrix
        return None
    rows = weight if node.op == "Gemm" and node.attribute("transB", 0) else weight.T
    return rows[:, :, None]
