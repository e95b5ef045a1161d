"""The form of a layer: the keys and values by which kernel tables distinguish layers.

docs/kernels.md describes the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from qdq.graph.float_types import FP32, FloatType
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import block_axis
from qdq.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, POOLS, RECURRENT, WEIGHTED
from qdq.graph.patterns import PLANE_RANK, is_spatial_mean

_FULL_PRECISION = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.UNDEFINED,
    None,
)
_SAME_PADDING = ("SAME_UPPER", "SAME_LOWER", b"SAME_UPPER", b"SAME_LOWER")
_BATCH_AND_CHANNEL = 2
_MATRIX_RANK = 2
_GEMM_BIAS = 2

#: The value of `batched` of a MatMul, by the rank of its right operand.
_BATCHED_BY_RANK = {3: "both", 4: "heads"}

_Form = dict[str, Any]
_Shape = Sequence[int | None]


def describe_layer_form(
    index: GraphIndex, node: Node, float_type: FloatType = FP32
) -> _Form | None:
    """Return the form of a layer, or None for an operator that rules never look up.

    Keys whose values are unknown, such as unknown dimensions, are omitted. `float_type` is the type
    that the float part of the model gets.
    """
    if not _is_listed(index, node):
        return None
    form: _Form = {
        "operator": _table_operator(node),
        "graph": _graph_precision(index, node, float_type),
    }
    if node.op in MATRIX_PRODUCTS:
        form.update(_product_form(index, node))
    elif node.op in RECURRENT:
        form.update(_recurrent_form(index, node))
    elif node.op != "Einsum":
        form.update(_window_form(index, node))
    if node.op in WEIGHTED:
        form["operands"] = _operand_kind(index, node)
    return {key: value for key, value in form.items() if value is not None}


def describe_block_form(
    index: GraphIndex, edge: Edge, block_size: int, float_type: FloatType = FP32
) -> _Form | None:
    """Return the form of a Gemm or MatMul whose weight has blocks, or None for other edges."""
    axis = block_axis(index, edge)
    shape = index.shape(edge.tensor)
    form = describe_layer_form(index, index.node(edge), float_type)
    if axis is None or shape is None or form is None:
        return None
    outputs = shape[1 - axis]
    form["block"] = block_size
    form["channels"] = shape[axis]
    form["odd"] = int(outputs is not None and outputs > 1 and outputs % 2 == 1)
    return {key: value for key, value in form.items() if value is not None}


def _is_listed(index: GraphIndex, node: Node) -> bool:
    if node.op in POOLS or node.op in WEIGHTED:
        return True
    return is_spatial_mean(index, node)


def _table_operator(node: Node) -> str:
    """Return the operator that the tables list a node under."""
    if node.op == "ReduceMean":
        return "GlobalAveragePool"
    return node.op


def _graph_precision(index: GraphIndex, node: Node, float_type: FloatType) -> str:
    data = node.inputs[0]
    if index.elem_type(data) in _FULL_PRECISION and not float_type.is_short:
        return "float32"
    return "float16"


def _operand_kind(index: GraphIndex, node: Node) -> str:
    operand_names = node.inputs[:2]
    if any(index.is_constant(name) for name in operand_names):
        return "constant"
    return "computed"


def _recurrent_form(index: GraphIndex, node: Node) -> _Form:
    data_shape = index.shape(node.inputs[0])
    is_batch_first = node.attribute("layout", 0)
    batch = _axis_length(data_shape, 0 if is_batch_first else 1)
    return {"scales": "usual", "rows": batch or 1}


def _window_form(index: GraphIndex, node: Node) -> _Form:
    """Return the form of a convolution or a pool."""
    data_shape = index.shape(node.inputs[0])
    form: _Form = {
        "spatial": _spatial_rank(index, node),
        "channels": _axis_length(data_shape, 1),
        "plane": _plane(data_shape),
        "kernel": _kernel(index, node),
        "stride": _largest(node, "strides"),
        "dilation": _largest(node, "dilations"),
    }
    if node.op in CONVOLUTIONS:
        form["groups"] = _grouping(index, node)
        form["outputs"] = _output_channels(index, node)
    else:
        is_padding_counted = node.attribute("count_include_pad", 0)
        form["padded"] = int(_is_padded(node))
        form["counted"] = int(is_padding_counted)
    return form


def _largest(node: Node, attribute: str) -> int:
    """Return the largest value of an attribute that holds one value per spatial axis, default 1."""
    values: list[int] = node.attribute(attribute, [])
    return max(values, default=1)


def _spatial_rank(index: GraphIndex, node: Node) -> int | None:
    rank = index.rank(node.inputs[0]) or None
    if rank is None and node.op in CONVOLUTIONS:
        rank = index.rank(node.inputs[1])
    if rank is None:
        return None
    return rank - _BATCH_AND_CHANNEL


def _plane(shape: _Shape | None) -> str | None:
    """Return ``point`` for a plane of one value, else ``wide``; None where there is no plane."""
    if not shape or len(shape) <= _BATCH_AND_CHANNEL:
        return None
    plane_shape = shape[_BATCH_AND_CHANNEL:]
    if all(size == 1 for size in plane_shape):
        return "point"
    return "wide"


def _kernel(index: GraphIndex, node: Node) -> int | str | None:
    """Return the side of a square kernel, else all as ``1x3``; None where they are unknown."""
    sides = tuple(node.attribute("kernel_shape", []))
    if not sides and node.op in CONVOLUTIONS:
        weight_shape = index.shape(node.inputs[1]) or ()
        sides = tuple(weight_shape[_BATCH_AND_CHANNEL:])
    if not sides:
        return None
    if len(set(sides)) > 1:
        return "x".join(map(str, sides))
    side: int | None = sides[0]
    return side


def _is_padded(node: Node) -> bool:
    pads = node.attribute("pads", [])
    if any(pads):
        return True
    return node.attribute("auto_pad", b"NOTSET") in _SAME_PADDING


def _grouping(index: GraphIndex, node: Node) -> str:
    """Return ``none``, ``depthwise`` (one channel in and out per group) or ``grouped``."""
    group = int(node.attribute("group", 1))
    if group == 1:
        return "none"
    weight_shape = index.shape(node.inputs[1]) or ()
    channels = weight_shape[:_BATCH_AND_CHANNEL]
    if channels == (group, 1):
        return "depthwise"
    return "grouped"


def _output_channels(index: GraphIndex, node: Node) -> int | None:
    weight_shape = index.shape(node.inputs[1])
    if node.op == "Conv":
        return _axis_length(weight_shape, 0)
    per_group = _axis_length(weight_shape, 1)
    if per_group is None:
        return None
    group = int(node.attribute("group", 1))
    return per_group * group


def _product_form(index: GraphIndex, node: Node) -> _Form:
    left_shape = index.shape(node.inputs[0])
    right_shape = index.shape(node.inputs[1])
    if node.op == "Gemm":
        return _gemm_form(node, left_shape, right_shape)
    return {
        "rows": _axis_length(left_shape, -2),
        "channels": _axis_length(left_shape, -1),
        "outputs": _axis_length(right_shape, -1),
        "batched": _batching(left_shape, right_shape),
    }


def _gemm_form(node: Node, left_shape: _Shape | None, right_shape: _Shape | None) -> _Form:
    left_is_transposed = int(node.attribute("transA", 0))
    right_is_transposed = int(node.attribute("transB", 0))
    rows_axis = 1 if left_is_transposed else 0
    outputs_axis = 0 if right_is_transposed else 1
    biases = node.inputs[_GEMM_BIAS:]
    alpha = node.attribute("alpha", 1.0)
    beta = node.attribute("beta", 1.0)
    return {
        "rows": _axis_length(left_shape, rows_axis),
        "channels": _axis_length(left_shape, 1 - rows_axis),
        "outputs": _axis_length(right_shape, outputs_axis),
        "transA": left_is_transposed,
        "transB": right_is_transposed,
        "bias": int(any(biases)),
        "alpha": float(alpha),
        "beta": float(beta),
    }


def _batching(left_shape: _Shape | None, right_shape: _Shape | None) -> str | None:
    """Return which operands of a MatMul are batched; None where a shape is unknown or empty."""
    if not left_shape or not right_shape:
        return None
    right_rank = min(len(right_shape), PLANE_RANK)
    if right_rank in _BATCHED_BY_RANK:
        return _BATCHED_BY_RANK[right_rank]
    if len(left_shape) > _MATRIX_RANK:
        return "data"
    return "none"


def _axis_length(shape: _Shape | None, axis: int) -> int | None:
    """Return the length of an axis, or None where it is unknown or not positive."""
    if shape is None:
        return None
    rank = len(shape)
    if not -rank <= axis < rank:
        return None
    length = shape[axis]
    if length is None or length <= 0:
        return None
    return length
