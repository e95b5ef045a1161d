"""How far Q/DQ may move a small graph's outputs: rounding errors carried through the graph as absolute values.

Interval arithmetic of the textbook kind (Moore 1966): each pair adds at most half the distance of
neighbouring values of its type, plus what it clips; a sum of products grows the error by |w|*e; operators
that only move, pick or average values pass it on; functions of one value stretch it by at most their steepest slope.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime as ort

from qdq.arrays import Array
from qdq.calibration.scales import Scales
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import PRODUCTS, RECURRENT
from qdq.planning.decisions import Plan
from qdq.quantizer import Quantizer
from qdq.runtime.session import open_session

#: Operators with f(error) as a bound of their result's error: they move, pick, sum or average values.
_PASSES_ERROR = (
    "AveragePool", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool",
    "Pad", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip

#: The steepest slope of functions of one value.
_SLOPE = {
    "Abs": 1.0, "Cast": 1.0, "Clip": 1.0, "Elu": 1.0, "Erf": 1.13, "Gelu": 1.13, "HardSigmoid": 1.0, "HardSwish": 1.5, "LeakyRelu": 1.0, "Neg": 1.0,
    "Relu": 1.0, "Sigmoid": 0.25, "Softplus": 1.0, "Tanh": 1.0,
}  # fmt: skip

#: Where an operator is neither, this share of the output's largest value is taken.
_UNKNOWN_SHARE = 0.25

#: Float rounding in either runtime.
_FLOAT_SHARE = 1e-4
_TINY = 1e-30

#: Larger than any value of a case, and small enough to calculate with in float32.
_ANYTHING = 1e9
_LARGEST_EXPONENT = 50.0


def output_bound(
    index: GraphIndex, plan: Plan, scales: Scales, feed: Mapping[str, Array]
) -> dict[str, Array]:
    """Return, for each graph output, the largest absolute difference that the pairs may make for one feed."""
    values = _values(index, feed)
    by_pair = {(s.tensor, s.quantizer): np.array(s.scales, np.float64) for s in scales.by_pair}
    pairs = {
        p.edge: (p.quantizer, by_pair[p.edge.qualified_tensor, p.quantizer])
        for p in plan.placements
    }
    errors: dict[str, Array] = {}
    for node in index.nodes:
        edges = [index.edge(node, slot) for slot in range(len(node.inputs))]
        given = [
            _edge_error(pairs.get(e), values.get(e.tensor), errors.get(e.tensor)) for e in edges
        ]
        for name, error in zip(node.outputs, _node_error(index, node, values, given), strict=False):
            errors[name] = np.abs(error)
    return {
        o: errors.get(o, np.zeros(()))
        + _FLOAT_SHARE * np.abs(values[o]).max(initial=0.0)
        + _FLOAT_SHARE
        for o in index.outputs
    }


def _values(index: GraphIndex, feed: Mapping[str, Array]) -> dict[str, Array]:
    names = [o for n in index.nodes for o in n.outputs if o]
    constants = {name: index.constant(name) for name in index.initializers}
    return {
        **constants,
        **feed,
        **dict(zip(names, open_session(index, names).run(names, dict(feed)), strict=True)),
    }


def _edge_error(
    pair: tuple[Quantizer, Array] | None, value: Array | None, error: Array | None
) -> Array:
    """Return the error on an edge: what the tensor has already, and what its pair adds by rounding and clipping."""
    carried = np.zeros_like(value, np.float64) if error is None and value is not None else error
    if pair is None or value is None or carried is None:
        return np.zeros(()) if carried is None else carried
    quantizer, scale = pair
    if quantizer.axis is not None:
        scale = scale.reshape([-1 if a == quantizer.axis else 1 for a in range(value.ndim)])
    reach, element = np.abs(value) + carried, quantizer.element
    clipped = np.maximum(reach - element.largest * scale, 0.0)
    rounded: Array = carried + element.error(reach / scale) * scale + clipped
    return rounded


def _node_error(
    index: GraphIndex, node: Node, values: Mapping[str, Array], errors: list[Array]
) -> list[Array]:
    if not any(np.any(e) for e in errors) and not node.bodies:
        return [np.zeros_like(values[o], np.float64) if o else np.zeros(()) for o in node.outputs]
    if node.op in (*PRODUCTS, "Mul", "Pow"):
        return [_product_error(index, node, values, errors)]
    if node.op in _PASSES_ERROR:
        rest = (
            errors[1:]
            if node.op == "Concat"
            else [values.get(i, np.zeros(0, np.float32)) for i in node.inputs[1:]]
        )
        return _run(index, node, [errors[0], *rest])
    if node.op in _SLOPE:
        return [_SLOPE[node.op] * errors[0]]
    if (
        node.op in RECURRENT
    ):  # its state lies between -1 and 1, that of an LSTM's cell within the number of steps
        return [
            np.full(values[o].shape, 2.0 * (len(values[node.inputs[0]]) if slot > 1 else 1))
            if o
            else np.zeros(())
            for slot, o in enumerate(node.outputs)
        ]
    if node.op in _OF_VALUES:
        given = [values.get(i, np.zeros(0)).astype(np.float64) for i in node.inputs]
        return [
            np.broadcast_to(_OF_VALUES[node.op](node, given, errors), values[node.outputs[0]].shape)
        ]
    return [
        np.full_like(values[o], _UNKNOWN_SHARE * np.abs(values[o]).max(initial=0.0), np.float64)
        if o
        else np.zeros(())
        for o in node.outputs
    ]


def _product_error(
    index: GraphIndex, node: Node, values: Mapping[str, Array], errors: list[Array]
) -> Array:
    """|(x+dx)(w+dw) - xw| <= (|x|+|dx|)(|w|+|dw|) - |x||w|, summed as the operator sums."""
    a, b = (np.abs(values[i]) for i in node.inputs[:2])
    grown = _run(index, node, [a + errors[0], b + errors[1]])
    return grown[0] - _run(index, node, [a, b])[0]


def _sum_error(_node: Node, _values: list[Array], errors: list[Array]) -> Array:
    return np.asarray(sum(errors))


def _largest_error(_node: Node, _values: list[Array], errors: list[Array]) -> Array:
    largest: Array = functools.reduce(np.maximum, errors)
    return largest


def _quotient_error(_node: Node, values: list[Array], errors: list[Array]) -> Array:
    """|(a+da)/(b+db) - a/b| <= (|b||da| + |a||db|) / (|b|(|b|-|db|)); a divisor that may become 0 allows anything."""
    a, b, da, db = np.abs(values[0]), np.abs(values[1]), *errors
    return np.where(b > db, (b * da + a * db) / (b * np.maximum(b - db, _TINY)), _ANYTHING)


def _root_error(_node: Node, values: list[Array], errors: list[Array]) -> Array:
    bound: Array = np.minimum(np.sqrt(errors[0]), errors[0] / np.sqrt(np.maximum(values[0], _TINY)))
    return bound


def _slope_error(_node: Node, values: list[Array], errors: list[Array]) -> Array:
    return errors[0] * np.maximum(1.0, np.abs(values[1]))


def _softmax_error(node: Node, values: list[Array], errors: list[Array]) -> Array:
    """Shifting each score by at most e changes each share by a factor of at most exp(2e)."""
    axis = node.attribute("axis", -1)
    shares = np.exp(values[0] - values[0].max(axis, keepdims=True))
    grown = np.expm1(np.minimum(2 * errors[0].max(axis, keepdims=True), _LARGEST_EXPONENT))
    bound: Array = np.minimum(1.0, shares / shares.sum(axis, keepdims=True) * grown)
    return bound


def _batch_normalization_error(node: Node, values: list[Array], errors: list[Array]) -> Array:
    scale, variance = (values[slot].reshape(-1, *[1] * (values[0].ndim - 2)) for slot in (1, 4))
    bound: Array = errors[0] * np.abs(scale) / np.sqrt(variance + node.attribute("epsilon", 1e-5))
    return bound


def _layer_normalization_error(node: Node, values: list[Array], errors: list[Array]) -> Array:
    """Of d/s, where d moves by at most e plus its mean and s by at most the root mean square of that."""
    axes = tuple(range(node.attribute("axis", -1) % values[0].ndim, values[0].ndim))
    d = values[0] - values[0].mean(axes, keepdims=True)
    s = np.sqrt((d**2).mean(axes, keepdims=True) + node.attribute("epsilon", 1e-5))
    e = errors[0] + errors[0].mean(axes, keepdims=True)
    ds = np.sqrt((e**2).mean(axes, keepdims=True))
    return np.abs(values[1]) * _quotient_error(node, [d, s], [e, ds])


#: Operators whose result's error follows from their inputs' values and errors.
_OF_VALUES: Mapping[str, Callable[[Node, list[Array], list[Array]], Array]] = {
    "Add": _sum_error, "Sub": _sum_error, "Sum": _sum_error, "Max": _largest_error, "Min": _largest_error, "Where": _largest_error,
    "Div": _quotient_error, "Sqrt": _root_error, "PRelu": _slope_error, "Softmax": _softmax_error,
    "BatchNormalization": _batch_normalization_error, "LayerNormalization": _layer_normalization_error,
}  # fmt: skip


def _run(index: GraphIndex, node: Node, inputs: list[Array]) -> list[Array]:
    """Return what the operator makes of other inputs; a bias is left out."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    feeds = {
        f"i{k}": np.asarray(v, np.float32 if v.dtype.kind == "f" else v.dtype)
        for k, v in enumerate(inputs)
    }
    proto.input[:] = [name if node.inputs[k] else "" for k, name in enumerate(feeds)]
    declared = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape
        )
        for n, v in feeds.items()
        if n in proto.input
    ]
    graph = onnx.helper.make_graph(
        [proto],
        "bound",
        declared,
        [onnx.helper.make_empty_tensor_value_info(o) for o in proto.output if o],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=index.source.model.opset_import,
        ir_version=index.source.model.ir_version,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [
        np.asarray(v, np.float64)
        for v in session.run(None, {n: v for n, v in feeds.items() if n in proto.input})
    ]
