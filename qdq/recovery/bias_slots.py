"""Where quantized layers take their biases: an input of the layer, or of an Add after it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from onnx import TensorProto

from qdq.graph.index import GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS
from qdq.graph.shape_inference import Dims, known_sizes
from qdq.planning.decisions import Plan

_BIAS_SLOT = 2
_MATRIX_RANK = 2

#: The types of tensors that ONNX Runtime multiplies and qdq plans.
_FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)


class BiasSlot(msgspec.Struct, frozen=True):
    """The input that the bias of a layer of the main graph is read at, or could be."""

    #: Label of the layer.
    layer: str
    #: The tensor that the layer computes.
    output: str
    #: The layer's channels, shaped to broadcast against its output: (C, 1, 1) or (C,).
    channel_shape: tuple[int, ...]
    #: The first output of the node with the input: the layer's, or an Add's.
    node: str
    slot: int
    #: The layer's channels, shaped to broadcast against the bias.
    bias_shape: tuple[int, ...]
    #: The ONNX type of the bias.
    elem_type: int
    #: The factor of the bias in the layer's output (ONNX operator Gemm, attribute beta).
    factor: float = 1.0


def find_bias_slots(index: GraphIndex, plan: Plan) -> Iterator[BiasSlot]:
    """Yield the bias of each quantized layer of the main graph that has one or can get one.

    Layers are convolutions and matrix products, in the order of the graph. Left out are biases
    that are computed or quantized, a MatMul without an Add after it, and layers of other types
    than float32 and float16.
    """
    quantized: set[tuple[str, int]] = set()
    for placement in plan.placements:
        if placement.edge.graph == index.path:
            quantized.add((placement.edge.node, placement.edge.slot))
    for node in index.nodes:
        if {(node.label, 0), (node.label, 1)}.isdisjoint(quantized):
            continue
        if node.op not in (*CONVOLUTIONS, *MATRIX_PRODUCTS) or not operands(index, node):
            continue
        slot = _find_slot(index, node)
        if slot is None:
            continue
        reader = index.producers[slot.node]
        if (reader.label, slot.slot) not in quantized:
            yield slot


def _find_slot(index: GraphIndex, node: Node) -> BiasSlot | None:
    """Return the bias of a layer, None where it can have none that is constant."""
    elem_type = index.elem_type(node.outputs[0])
    channel_shape = _channel_shape(index, node)
    if elem_type not in _FLOAT_TYPES or channel_shape is None:
        return None
    own = BiasSlot(
        layer=node.label,
        output=node.outputs[0],
        channel_shape=channel_shape,
        node=node.outputs[0],
        slot=_BIAS_SLOT,
        bias_shape=channel_shape[:1],
        elem_type=elem_type,
        factor=float(node.attribute("beta", 1.0)) if node.op == "Gemm" else 1.0,
    )
    bias = node.inputs[_BIAS_SLOT] if len(node.inputs) > _BIAS_SLOT else ""
    if bias and node.op != "MatMul":
        is_usable = own.factor != 0.0 and _can_add(index, bias, own.bias_shape)
        return own if is_usable else None
    added = _find_added_bias(index, own)
    if added is not None or node.op == "MatMul":
        return added
    return own if own.factor != 0.0 else None


def _find_added_bias(index: GraphIndex, own: BiasSlot) -> BiasSlot | None:
    """Return the constant that an Add after a layer adds to its output, None for other readers."""
    reader = index.sole_consumer(own.output)
    if reader is None or reader.op != "Add" or reader.inputs.count(own.output) != 1:
        return None
    slot = 1 - reader.inputs.index(own.output)
    if not _can_add(index, reader.inputs[slot], own.channel_shape):
        return None
    return msgspec.structs.replace(
        own, node=reader.outputs[0], slot=slot, bias_shape=own.channel_shape, factor=1.0
    )


def _channel_shape(index: GraphIndex, node: Node) -> tuple[int, ...] | None:
    """Return the output channels of a layer, shaped to broadcast against its output."""
    shape = index.shape(node.inputs[1])
    if shape is None or len(shape) < _MATRIX_RANK:
        return None
    channels = _output_channels(node, shape)
    if not channels:
        return None
    if node.op in CONVOLUTIONS:
        spatial_rank = len(shape) - _MATRIX_RANK
        return (channels, *[1] * spatial_rank)
    return (channels,)


def _output_channels(node: Node, shape: Dims) -> int | None:
    if node.op == "Conv":
        return shape[0]
    if node.op == "ConvTranspose":
        return shape[1] and shape[1] * int(node.attribute("group", 1))
    if node.op == "Gemm" and node.attribute("transB", 0):
        return shape[0]
    return shape[-1]


def _can_add(index: GraphIndex, bias: str, channel_shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a constant that numbers for channels can be added to.

    The sum must not be larger than the bias and the channels, as that of a column and a row is.
    """
    shape = index.shape(bias)
    sizes = None if shape is None else known_sizes(shape)
    if not index.is_constant(bias) or sizes is None:
        return False
    try:
        summed = np.broadcast_shapes(sizes, channel_shape)
    except ValueError:
        return False
    return math.prod(summed) == max(math.prod(sizes), channel_shape[0])
