"""The multiply-accumulates of weighted layers, from the shapes of a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operands import einsum_labels, operands
from qdq.graph.operators import RECURRENT
from qdq.graph.shape_inference import known_sizes

#: Shapes by tensor.
Shapes = Mapping[str, tuple[int, ...]]

_MATRIX_AXES = 2
_SPATIAL_AXIS = 2


def count_work(index: GraphIndex, shapes: Shapes) -> dict[str, int]:
    """Return the multiply-accumulates of each weighted node of a model, by its label.

    `shapes` are those of a sample's tensors in the main graph. In bodies, one iteration counts,
    with the shapes that the file states; layers of unknown size count nothing.
    """
    work: dict[str, int] = {}
    for path, scope in index.scopes.items():
        known_shapes = shapes if not path else {}
        for node in scope.nodes:
            if operands(scope, node):
                label = qualified_name(path, node.label)
                work[label] = _count_node(scope, node, known_shapes)
    return work


def _count_node(index: GraphIndex, node: Node, shapes: Shapes) -> int:
    data, weight, result = (
        _find_shape(index, tensor, shapes) for tensor in (*node.inputs[:2], node.outputs[0])
    )
    if not data or not weight:
        return 0
    if node.op in RECURRENT:
        # [steps, batch, inputs] times W [directions, gates * hidden, inputs]
        return math.prod(data[:-1]) * math.prod(weight)
    if node.op == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if not result:
        return 0
    if node.op == "Conv":
        return math.prod(result) * math.prod(weight[1:])
    return math.prod(result) * _count_summed(node, data)


def _count_summed(node: Node, data: tuple[int, ...]) -> int:
    """Return the number of products that are summed into a value of a matrix product."""
    if node.op == "Gemm" and node.attribute("transA", 0):
        return data[0]
    labels = einsum_labels(node) if node.op == "Einsum" else None
    if labels is None:
        return data[-1]
    first, _, result = labels
    sizes = [size for label, size in zip(first, data, strict=False) if label not in result]
    return math.prod(sizes)


def _find_shape(index: GraphIndex, tensor: str, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of a tensor, () where it is not known."""
    if tensor in shapes:
        return shapes[tensor]
    dims = index.shape(tensor)
    sizes = known_sizes(dims) if dims is not None else None
    return tuple(sizes or ())
