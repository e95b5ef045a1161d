"""Weights as rows of a matrix product, and the inputs that the product multiplies with them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from qdq.arrays import Array
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import block_axis

_SPATIAL_AXES = 2

#: The rank of the weight of a convolution in two dimensions.
_CONVOLUTION_RANK = 4


class ProductLayout(msgspec.Struct, frozen=True):
    """How a weight and an input become the factors of a matrix product, in groups."""

    groups: int
    #: The shape of the weight.
    shape: tuple[int, ...]
    #: Whether the summed axis of a matrix is its first.
    sums_first: bool = False
    #: Whether the input of a Gemm is transposed.
    transposes_input: bool = False
    #: For a convolution: the values added before and after each spatial axis, the distances of
    #: windows and of the taps in a window; empty for other nodes.
    pads: tuple[tuple[int, int], ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """The number of values that an output of a group sums over."""
        return self.shape[0] if self.sums_first else math.prod(self.shape[1:])

    def to_rows(self, weight: Array) -> Array:
        """Return a tensor of the weight's shape as [groups, outputs of a group, inputs]."""
        matrix = weight.T if self.sums_first else weight
        return matrix.reshape(self.groups, -1, self.inputs)

    def from_rows(self, rows: Array) -> Array:
        """Return rows in the weight's shape."""
        matrix = rows.reshape(-1, self.inputs)
        return np.ascontiguousarray(matrix.T if self.sums_first else matrix).reshape(self.shape)

    def to_columns(self, values: Array, most: int) -> Array:
        """Return an input as [groups, positions, inputs], of `most` positions spread over it."""
        if self.strides:
            return self._unfold(values, most)
        matrix = values.T if self.transposes_input else values
        return _spread_rows(matrix.reshape(-1, self.inputs), most)[None]

    def _unfold(self, values: Array, most: int) -> Array:
        """Return the windows of a convolution's input."""
        windows = self._list_windows(values)
        batch, channels, height, width = windows.shape[:_CONVOLUTION_RANK]
        positions = _spread_rows(np.arange(batch * height * width), most)
        image, row, column = np.unravel_index(positions, (batch, height, width))
        chosen = windows[image, :, row, column]
        grouped = chosen.reshape(len(positions), self.groups, channels // self.groups, -1)
        return np.moveaxis(grouped, 1, 0).reshape(self.groups, len(positions), self.inputs)

    def _list_windows(self, values: Array) -> Array:
        """Return a view of the windows: [batch, channels, rows, columns, taps down, taps right]."""
        padded = np.pad(values, ((0, 0), (0, 0), *self.pads))
        spans: list[int] = []
        for size, dilation in zip(self.shape[_SPATIAL_AXES:], self.dilations, strict=True):
            spans.append((size - 1) * dilation + 1)
        windows = sliding_window_view(padded, tuple(spans), axis=(2, 3))
        strides = tuple(slice(None, None, stride) for stride in self.strides)
        taps = tuple(slice(None, None, dilation) for dilation in self.dilations)
        return windows[(slice(None), slice(None), *strides, *taps)]


def _spread_rows(rows: Array, most: int) -> Array:
    step = max(math.ceil(len(rows) / most), 1)
    return rows[::step]


def find_layout(index: GraphIndex, edge: Edge) -> ProductLayout | None:
    """Return the layout of the product of a weight, None for operators without one here.

    These are Gemm and MatMul with a matrix, and convolutions in two dimensions with stated pads.
    """
    node = index.node(edge)
    shape = index.constant(edge.tensor).shape
    axis = block_axis(index, edge)
    if axis is not None:
        transposes = node.op == "Gemm" and bool(node.attribute("transA", 0))
        return ProductLayout(1, shape, axis == 0, transposes)
    is_convolution = node.op == "Conv" and edge.slot == 1 and len(shape) == _CONVOLUTION_RANK
    if not is_convolution or node.attribute("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    return _make_convolution_layout(node, shape)


def _make_convolution_layout(node: Node, shape: tuple[int, ...]) -> ProductLayout:
    pads = tuple(node.attribute("pads", (0,) * (2 * _SPATIAL_AXES)))
    return ProductLayout(
        groups=int(node.attribute("group", 1)),
        shape=shape,
        pads=tuple(zip(pads[:_SPATIAL_AXES], pads[_SPATIAL_AXES:], strict=True)),
        strides=tuple(node.attribute("strides", (1,) * _SPATIAL_AXES)),
        dilations=tuple(node.attribute("dilations", (1,) * _SPATIAL_AXES)),
    )
