"""The form of a layer: the keys and values by which kernel tables distinguish layers.

docs/kernels.md describes the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from qdq.graph.index import GraphIndex, Node
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


def describe_layer_form(index: GraphIndex, node: Node) -> _Form | None:
    """Return the form of a layer, or None for an operator that rules never look up.

    Keys whose values are unknown, such as unknown dimensions, are omitted.
    """
    if node.op not in POOLS and node.op not in WEIGHTED and not is_spatial_mean(index, node):
        return None
    form: _Form = {"operator": _table_operator(node), "graph": _graph_precision(index, node)}
    if node.op in MATRIX_PRODUCTS:
        form.update(_product_form(index, node))
    elif node.op in RECURRENT:
        form.update(_recurrent_form(index, node))
    elif node.op != "Einsum":
        form.update(_window_form(index, node))
    if node.op in WEIGHTED:
        has_constant = any(index.is_constant(name) for name in node.inputs[:2])
        form["operands"] = "constant" if has_constant else "computed"
    return {key: value for key, value in form.items() if value is not None}


def _table_operator(node: Node) -> str:
    """Return the operator that the tables list a node under."""
    return "GlobalAveragePool" if node.op == "ReduceMean" else node.op


def _graph_precision(index: GraphIndex, node: Node) -> str:
    return "float32" if index.elem_type(node.inputs[0]) in _FULL_PRECISION else "float16"


def _recurrent_form(index: GraphIndex, node: Node) -> _Form:
    batch_axis = 0 if node.attribute("layout", 0) else 1
    batch = _axis_length(index.shape(node.inputs[0]), batch_axis)
    return {"scales": "usual", "rows": batch or 1}


def _window_form(index: GraphIndex, node: Node) -> _Form:
    """Return the form of a convolution or a pool."""
    data_shape = index.shape(node.inputs[0])
    form: _Form = {
        "spatial": _spatial_rank(index, node),
        "channels": _axis_length(data_shape, 1),
        "plane": _plane(data_shape),
        "kernel": _kernel(index, node),
        "stride": max(node.attribute("strides", [1]) or [1]),
        "dilation": max(node.attribute("dilations", [1]) or [1]),
    }
    if node.op in CONVOLUTIONS:
        form["groups"] = _grouping(index, node)
        form["outputs"] = _output_channels(index, node)
    else:
        form["padded"] = int(_is_padded(node))
        form["counted"] = int(node.attribute("count_include_pad", 0))
    return form


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
    is_point = all(size == 1 for size in shape[_BATCH_AND_CHANNEL:])
    return "point" if is_point else "wide"


def _kernel(index: GraphIndex, node: Node) -> int | str | None:
    """Return the side of a square kernel, else all as ``1x3``; None where they are unknown."""
    sides = tuple(node.attribute("kernel_shape", []))
    if not sides and node.op in CONVOLUTIONS:
        weight_shape = index.shape(node.inputs[1]) or ()
        sides = tuple(weight_shape[_BATCH_AND_CHANNEL:])
    if not sides:
        return None
    if len(set(sides)) == 1:
        side: int | None = sides[0]
        return side
    return "x".join(map(str, sides))


def _is_padded(node: Node) -> bool:
    return any(node.attribute("pads", [])) or node.attribute("auto_pad", b"NOTSET") in _SAME_PADDING


def _grouping(index: GraphIndex, node: Node) -> str:
    """Return ``none``, ``depthwise`` (one channel in and out per group) or ``grouped``."""
    group = int(node.attribute("group", 1))
    if group == 1:
        return "none"
    shape = index.shape(node.inputs[1]) or ()
    is_depthwise = tuple(shape[:_BATCH_AND_CHANNEL]) == (group, 1)
    return "depthwise" if is_depthwise else "grouped"


def _output_channels(index: GraphIndex, node: Node) -> int | None:
    weight_shape = index.shape(node.inputs[1])
    if node.op == "Conv":
        return _axis_length(weight_shape, 0)
    per_group = _axis_length(weight_shape, 1)
    if per_group is None:
        return None
    return per_group * int(node.attribute("group", 1))


def _product_form(index: GraphIndex, node: Node) -> _Form:
    left = index.shape(node.inputs[0])
    right = index.shape(node.inputs[1])
    if node.op == "Gemm":
        return _gemm_form(node, left, right)
    return {
        "rows": _axis_length(left, -2),
        "channels": _axis_length(left, -1),
        "outputs": _axis_length(right, -1),
        "batched": _batching(left, right),
    }


def _gemm_form(node: Node, left: _Shape | None, right: _Shape | None) -> _Form:
    left_is_transposed = int(node.attribute("transA", 0))
    right_is_transposed = int(node.attribute("transB", 0))
    has_bias = len(node.inputs) > _GEMM_BIAS and bool(node.inputs[_GEMM_BIAS])
    return {
        "rows": _axis_length(left, 1 if left_is_transposed else 0),
        "channels": _axis_length(left, 0 if left_is_transposed else 1),
        "outputs": _axis_length(right, 0 if right_is_transposed else 1),
        "transA": left_is_transposed,
        "transB": right_is_transposed,
        "bias": int(has_bias),
        "alpha": float(node.attribute("alpha", 1.0)),
        "beta": float(node.attribute("beta", 1.0)),
    }


def _batching(left: _Shape | None, right: _Shape | None) -> str | None:
    """Return which operands of a MatMul are batched; None where a shape is unknown or empty."""
    if not left or not right:
        return None
    right_rank = min(len(right), PLANE_RANK)
    if right_rank in _BATCHED_BY_RANK:
        return _BATCHED_BY_RANK[right_rank]
    return "data" if len(left) > _MATRIX_RANK else "none"


def _axis_length(shape: _Shape | None, axis: int) -> int | None:
    """Return the length of an axis, or None where it is unknown or not positive."""
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    length = shape[axis]
    if length is None or length <= 0:
        return None
    return length
