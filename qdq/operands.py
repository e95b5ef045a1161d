"""The operands of weighted operators: which slots are multiplied, and which axis of a weight is the output channel.

Axes follow the ONNX operator specification's weight layouts and TensorRT's per-channel
requirement (quantized types, explicit quantization): Conv 0; Gemm by `transB`; MatMul the
last axis of the right operand. ConvTranspose has none: TensorRT 8 wants axis 0, later releases
axis 1, and grouped ones fail to build, so one scale for the tensor is the form every release takes.
"""

from __future__ import annotations

from qdq.index import Edge, GraphIndex, Node

#: Operators whose first two inputs are multiplied and summed.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_DATA, _WEIGHT = 0, 1


def operands(index: GraphIndex, node: Node) -> tuple[Edge, ...]:
    """Return the two edges that a weighted node multiplies; none for other nodes, integer matrix products or sparse weights."""
    if node.op not in WEIGHTED or len(node.inputs) < 2:  # noqa: PLR2004 two operands
        return ()
    edges = tuple(index.edge(node, slot) for slot in (_DATA, _WEIGHT))
    typed = [index.elem_type(e.tensor) for e in edges]
    if any(t and not index.is_float(e.tensor) for t, e in zip(typed, edges, strict=True)):
        return ()
    if all(index.is_constant(e.tensor) for e in edges) or any(e.tensor in index.sparse for e in edges):
        return ()
    return edges


def is_operand(index: GraphIndex, edge: Edge) -> bool:
    """Whether the edge is one of the two that a weighted node multiplies."""
    return edge in operands(index, index.node(edge))


def channel_axis(index: GraphIndex, edge: Edge) -> int | None:
    """Return the axis of a weight that holds output channels, or None where one scale must do.

    None for ConvTranspose, for one-dimensional weights, and for edges that are no operand.
    """
    node = index.node(edge)
    rank = index.rank(edge.tensor)
    if node.op == "Conv":
        return 0 if edge.slot == _WEIGHT else None
    if node.op == "Gemm":
        return _gemm_axis(node, edge.slot)
    if node.op == "MatMul" and rank is not None and rank > 1:
        return rank - 1 if edge.slot == _WEIGHT else rank - 2
    return None


def _gemm_axis(node: Node, slot: int) -> int:
    if slot == _DATA:
        return 1 if node.attribute("transA", 0) else 0
    return 0 if node.attribute("transB", 0) else 1
