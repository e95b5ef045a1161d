"""Bounds of the error that Q/DQ pairs make in a small graph's outputs.

Rounding errors are carried through the graph as absolute values, which is interval arithmetic
(Moore 1966). A pair adds at most half the distance of neighbouring values of its type, and what it
clips. A sum of products grows an error e to |w|*e. Operators that only move, pick or average values
pass it on. Functions of one value stretch it by at most their steepest slope.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from qdq.arrays import Array
from qdq.calibration.scales import Scales
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operators import PRODUCTS, RECURRENT
from qdq.optional_packages import onnxruntime as ort
from qdq.planning.decisions import Plan
from qdq.quantized.integer_values import spread_scale
from qdq.quantizer import Quantizer
from qdq.runtime.session import open_session, run_outputs

#: Operators that move, pick, sum or average values: applied to an error they return a bound of the
#: result's error.
_PASSES_ERROR = (
    "AveragePool",
    "Concat",
    "DepthToSpace",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "Pad",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)

#: The steepest slope of functions of one value.
_STEEPEST_SLOPE = {
    "Abs": 1.0,
    "Cast": 1.0,
    "Clip": 1.0,
    "Elu": 1.0,
    "Erf": 1.13,
    "Gelu": 1.13,
    "HardSigmoid": 1.0,
    "HardSwish": 1.5,
    "LeakyRelu": 1.0,
    "Neg": 1.0,
    "Relu": 1.0,
    "Sigmoid": 0.25,
    "Softplus": 1.0,
    "Tanh": 1.0,
}

#: The error of other operators, as a share of the output's largest value.
_UNKNOWN_SHARE = 0.25

#: Float rounding in either runtime, as a share of the output's largest value.
_FLOAT_SHARE = 1e-4
_TINY = 1e-30

#: Larger than any value of a case, and small enough to calculate with in float32.
_UNBOUNDED = 1e9
_LARGEST_EXPONENT = 50.0

#: Input slots of BatchNormalization.
_SCALE = 1
_VARIANCE = 4

_DEFAULT_EPSILON = 1e-5

#: A quantizer with the scales of one pair.
_ScaledQuantizer = tuple[Quantizer, Array]


def output_bound(
    index: GraphIndex, plan: Plan, scales: Scales, feed: Mapping[str, Array]
) -> dict[str, Array]:
    """Return, for each graph output, the largest absolute error that the pairs can make for a feed.

    Each bound has the shape of the output, or fits it by broadcasting.
    """
    values = _compute_values(index, feed)
    pairs = _pairs_by_edge(plan, scales)
    errors: dict[str, Array] = {}
    for node in index.nodes:
        input_errors: list[Array] = []
        for slot, tensor in enumerate(node.inputs):
            pair = pairs.get(index.edge(node, slot))
            input_errors.append(_edge_error(pair, values.get(tensor), errors.get(tensor)))
        output_errors = _node_errors(index, node, values, input_errors)
        for name, error in zip(node.outputs, output_errors, strict=False):
            errors[name] = np.abs(error)
    bounds: dict[str, Array] = {}
    for name in index.outputs:
        error = errors.get(name, np.zeros(()))
        float_error = _FLOAT_SHARE * np.abs(values[name]).max(initial=0.0)
        bounds[name] = error + float_error + _FLOAT_SHARE
    return bounds


def _compute_values(index: GraphIndex, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Return the value of every tensor of the float graph for a feed."""
    values: dict[str, Array] = {name: index.constant(name) for name in index.initializers}
    values.update(feed)
    names: list[str] = []
    for node in index.nodes:
        names.extend(name for name in node.outputs if name)
    computed = run_outputs(open_session(index, names), index, names, dict(feed))
    values.update(zip(names, computed, strict=True))
    return values


def _pairs_by_edge(plan: Plan, scales: Scales) -> dict[Edge, _ScaledQuantizer]:
    scales_by_pair: dict[tuple[str, Quantizer], Array] = {}
    for pair in scales.by_pair:
        scales_by_pair[pair.tensor, pair.quantizer] = np.array(pair.scales, np.float64)
    pairs: dict[Edge, _ScaledQuantizer] = {}
    for placement in plan.placements:
        edge, quantizer = placement.edge, placement.quantizer
        pairs[edge] = (quantizer, scales_by_pair[edge.qualified_tensor, quantizer])
    return pairs


def _edge_error(
    pair: _ScaledQuantizer | None, value: Array | None, tensor_error: Array | None
) -> Array:
    """Return the error on an edge: that of the tensor, and what its pair adds.

    A pair adds half a step of its type, and what it clips.
    """
    if tensor_error is None and value is not None:
        tensor_error = np.zeros_like(value, np.float64)
    if tensor_error is None:
        return np.zeros(())
    if pair is None or value is None:
        return tensor_error
    quantizer, scale = pair
    element = quantizer.element
    if quantizer.axis is not None:
        scale = scale.reshape(quantizer.scale_shape(value.shape))
        scale = spread_scale(scale, value.shape, quantizer.axis, quantizer.block_size)
    largest_input = np.abs(value) + tensor_error
    clipping_error = np.maximum(largest_input - element.largest * scale, 0.0)
    rounding_error = element.error(largest_input / scale) * scale
    error: Array = tensor_error + rounding_error + clipping_error
    return error


def _node_errors(
    index: GraphIndex, node: Node, values: Mapping[str, Array], errors: list[Array]
) -> list[Array]:
    """Return the error of each output of a node; `errors` holds those on its input edges."""
    if not node.bodies and not any(np.any(error) for error in errors):
        return _errors_like_outputs(node, values, lambda value: 0.0)
    if node.op in (*PRODUCTS, "Mul", "Pow"):
        return [_product_error(index, node, values, errors)]
    if node.op in _PASSES_ERROR:
        return _passed_errors(index, node, values, errors)
    if node.op in _STEEPEST_SLOPE:
        return [_STEEPEST_SLOPE[node.op] * errors[0]]
    if node.op in RECURRENT:
        return _recurrent_errors(node, values)
    if node.op in _ERROR_FUNCTIONS:
        inputs: list[Array] = []
        for name in node.inputs:
            inputs.append(values.get(name, np.zeros(0)).astype(np.float64))
        error = _ERROR_FUNCTIONS[node.op](node, inputs, errors)
        return [np.broadcast_to(error, values[node.outputs[0]].shape)]
    return _errors_like_outputs(node, values, _unknown_error)


def _errors_like_outputs(
    node: Node, values: Mapping[str, Array], find_error: Callable[[Array], float]
) -> list[Array]:
    """Return arrays of the outputs' shapes, each filled with one error."""
    errors: list[Array] = []
    for name in node.outputs:
        if name:
            errors.append(np.full_like(values[name], find_error(values[name]), np.float64))
        else:
            errors.append(np.zeros(()))
    return errors


def _unknown_error(value: Array) -> float:
    largest: float = np.abs(value).max(initial=0.0)
    return _UNKNOWN_SHARE * largest


def _passed_errors(
    index: GraphIndex, node: Node, values: Mapping[str, Array], errors: list[Array]
) -> list[Array]:
    """Return the operator's results for errors instead of values."""
    inputs = [errors[0]]
    if node.op == "Concat":
        inputs += errors[1:]
    else:
        missing = np.zeros(0, np.float32)
        inputs += [values.get(name, missing) for name in node.inputs[1:]]
    return _run_node(index, node, inputs)


def _recurrent_errors(node: Node, values: Mapping[str, Array]) -> list[Array]:
    """Return the width of the interval that holds each output.

    States are between -1 and 1, and the cell of an LSTM is within the number of steps.
    """
    steps = len(values[node.inputs[0]])
    errors: list[Array] = []
    for slot, name in enumerate(node.outputs):
        if name:
            largest = steps if slot > 1 else 1
            errors.append(np.full(values[name].shape, 2.0 * largest))
        else:
            errors.append(np.zeros(()))
    return errors


def _product_error(
    index: GraphIndex, node: Node, values: Mapping[str, Array], errors: list[Array]
) -> Array:
    """|(x+dx)(w+dw) - xw| <= (|x|+|dx|)(|w|+|dw|) - |x||w|, summed as the operator sums."""
    x = np.abs(values[node.inputs[0]])
    w = np.abs(values[node.inputs[1]])
    (grown,) = _run_node(index, node, [x + errors[0], w + errors[1]])[:1]
    (exact,) = _run_node(index, node, [x, w])[:1]
    return grown - exact


def _sum_error(_node: Node, _values: list[Array], errors: list[Array]) -> Array:
    return np.asarray(sum(errors))


def _largest_error(_node: Node, _values: list[Array], errors: list[Array]) -> Array:
    largest: Array = functools.reduce(np.maximum, errors)
    return largest


def _quotient_error(_node: Node, values: list[Array], errors: list[Array]) -> Array:
    """|(a+da)/(b+db) - a/b| <= (|b||da| + |a||db|) / (|b|(|b|-|db|)).

    A divisor that may become 0 has no bound.
    """
    a, b = np.abs(values[0]), np.abs(values[1])
    da, db = errors
    numerator = b * da + a * db
    denominator = b * np.maximum(b - db, _TINY)
    return np.where(b > db, numerator / denominator, _UNBOUNDED)


def _root_error(_node: Node, values: list[Array], errors: list[Array]) -> Array:
    """|sqrt(x+e) - sqrt(x)| <= min(sqrt(e), e / sqrt(x))."""
    root = np.sqrt(np.maximum(values[0], _TINY))
    bound: Array = np.minimum(np.sqrt(errors[0]), errors[0] / root)
    return bound


def _slope_error(_node: Node, values: list[Array], errors: list[Array]) -> Array:
    """A PRelu stretches an error by its slope, or by 1."""
    slope = np.abs(values[1])
    return errors[0] * np.maximum(1.0, slope)


def _softmax_error(node: Node, values: list[Array], errors: list[Array]) -> Array:
    """Shifting each score by at most e changes each share by a factor of at most exp(2e)."""
    axis = node.attribute("axis", -1)
    largest_score = values[0].max(axis, keepdims=True)
    exponentials = np.exp(values[0] - largest_score)
    shares = exponentials / exponentials.sum(axis, keepdims=True)
    exponent = 2 * errors[0].max(axis, keepdims=True)
    growth = np.expm1(np.minimum(exponent, _LARGEST_EXPONENT))
    bound: Array = np.minimum(1.0, shares * growth)
    return bound


def _batch_normalization_error(node: Node, values: list[Array], errors: list[Array]) -> Array:
    """A channel stretches an error by |scale| / sqrt(variance + epsilon)."""
    trailing = [1] * (values[0].ndim - 2)
    scale = values[_SCALE].reshape(-1, *trailing)
    variance = values[_VARIANCE].reshape(-1, *trailing)
    deviation = np.sqrt(variance + node.attribute("epsilon", _DEFAULT_EPSILON))
    bound: Array = errors[0] * np.abs(scale) / deviation
    return bound


def _layer_normalization_error(node: Node, values: list[Array], errors: list[Array]) -> Array:
    """Return |scale| times the error of the quotient d/s, d = x - mean(x) and s = rms(d).

    The error of d is at most e plus its mean, that of s at most the root mean square of that.
    """
    x, scale, e = values[0], values[1], errors[0]
    first_axis = node.attribute("axis", -1) % x.ndim
    axes = tuple(range(first_axis, x.ndim))
    d = x - x.mean(axes, keepdims=True)
    mean_square = (d**2).mean(axes, keepdims=True)
    s = np.sqrt(mean_square + node.attribute("epsilon", _DEFAULT_EPSILON))
    d_error = e + e.mean(axes, keepdims=True)
    s_error = np.sqrt((d_error**2).mean(axes, keepdims=True))
    return np.abs(scale) * _quotient_error(node, [d, s], [d_error, s_error])


#: Operators whose error follows from the values of their inputs and the errors of these.
_ERROR_FUNCTIONS: Mapping[str, Callable[[Node, list[Array], list[Array]], Array]] = {
    "Add": _sum_error,
    "Sub": _sum_error,
    "Sum": _sum_error,
    "Max": _largest_error,
    "Min": _largest_error,
    "Where": _largest_error,
    "Div": _quotient_error,
    "Sqrt": _root_error,
    "PRelu": _slope_error,
    "Softmax": _softmax_error,
    "BatchNormalization": _batch_normalization_error,
    "LayerNormalization": _layer_normalization_error,
}


def _run_node(index: GraphIndex, node: Node, inputs: list[Array]) -> list[Array]:
    """Return the results of an operator for other inputs, without the bias that follows them."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    names = [f"i{slot}" if node.inputs[slot] else "" for slot in range(len(inputs))]
    proto.input[:] = names
    feeds: dict[str, Array] = {}
    for name, value in zip(names, inputs, strict=True):
        if name:
            dtype = np.float32 if value.dtype.kind == "f" else value.dtype
            feeds[name] = np.asarray(value, dtype)
    model = _single_node_model(index, proto, feeds)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(result, np.float64) for result in session.run(None, feeds)]


def _single_node_model(
    index: GraphIndex, proto: onnx.NodeProto, feeds: Mapping[str, Array]
) -> onnx.ModelProto:
    """Return a model of one node with the types and shapes of its feeds."""
    inputs: list[onnx.ValueInfoProto] = []
    for name, value in feeds.items():
        dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        inputs.append(onnx.helper.make_tensor_value_info(name, dtype, value.shape))
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "bound", inputs, outputs)
    source = index.source.model
    return onnx.helper.make_model(
        graph, opset_imports=source.opset_import, ir_version=source.ir_version
    )
