"""The axes of the channels of a weighted layer with a constant weight, of its weight and result."""

from __future__ import annotations

import msgspec

from qdq.arrays import Array
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import CONVOLUTIONS
from qdq.graph.shape_inference import known_sizes

_WEIGHT_SLOT = 1
_MATRIX_RANK = 2


class ProductAxes(msgspec.Struct, frozen=True):
    """The axes of a layer's channels: of its input, its weight and its result.

    An axis of a weight in groups has other channels in each group of axis 0.
    """

    #: The axis of the input that the layer sums over.
    data: int
    #: The axis of the weight that the layer sums over, and the groups of it.
    summed: int
    summed_groups: int
    #: The axis of the weight that holds output channels, and the groups of it.
    outputs: int
    output_groups: int
    #: The axis of the result's channels.
    result: int
    #: The numbers of input and of output channels.
    summed_count: int
    output_count: int

    def arrange(self, weight: Array) -> Array:
        """Return a weight as [groups, output channels, input channels, taps] of each group."""
        groups = max(self.summed_groups, self.output_groups)
        in_groups = weight.reshape(groups, -1, *weight.shape[1:])
        if groups == 1:
            outputs, summed = self.outputs + 1, self.summed + 1
        else:
            outputs, summed = (1, 2) if self.summed_groups > 1 else (2, 1)
        if groups == 1:
            in_groups = weight[None]
        arranged = in_groups.transpose(0, outputs, summed, *range(3, in_groups.ndim))
        return arranged.reshape(*arranged.shape[:3], -1)


def find_product_axes(index: GraphIndex, node: Node) -> ProductAxes | None:
    """Return the axes of a layer whose second operand is constant, None for other forms.

    These are a matrix product with a weight of other than two axes, and a transposed input.
    """
    weight = node.inputs[_WEIGHT_SLOT]
    dims = known_sizes(index.shape(weight))
    if dims is None or len(dims) < _MATRIX_RANK or not index.is_constant(weight):
        return None
    if index.is_constant(node.inputs[0]):
        return None
    groups = int(node.attribute("group", 1))
    if node.op in CONVOLUTIONS and (groups < 1 or dims[0] % groups):
        return None
    if node.op == "Conv":
        return ProductAxes(1, 1, groups, 0, 1, 1, dims[1] * groups, dims[0])
    if node.op == "ConvTranspose":
        return ProductAxes(1, 0, 1, 1, groups, 1, dims[0], dims[1] * groups)
    return _find_matrix_axes(index, node, dims)


def _find_matrix_axes(index: GraphIndex, node: Node, dims: tuple[int, ...]) -> ProductAxes | None:
    rank = index.rank(node.inputs[0]) or 0
    if len(dims) != _MATRIX_RANK or rank < _MATRIX_RANK or node.attribute("transA", 0):
        return None
    summed = 1 if node.attribute("transB", 0) else 0
    last = rank - 1
    return ProductAxes(last, summed, 1, 1 - summed, 1, last, dims[summed], dims[1 - summed])
