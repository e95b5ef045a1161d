"""How far Q/DQ may move a small graph's outputs: rounding errors carried through the graph as absolute values.

Interval arithmetic of the textbook kind (Moore 1966): each pair adds at most half the distance of
neighbouring values of its type, plus what it clips; a sum of products grows the error by |w|*e; operators that only move, pick or
average values, or never stretch a difference, pass it on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from qdq.calibration import Scales
from qdq.index import Array, Edge, GraphIndex, Node
from qdq.operands import PRODUCTS
from qdq.planning import Plan
from qdq.quantizer import Quantizer

#: Operators with f(error) as a bound of their result's error: they move, pick, sum or average values.
_PASSES_ERROR = ("AveragePool", "Concat", "Flatten", "GlobalAveragePool", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "ReduceMean")
#: Operators whose result never differs by more than their input does.
_CONTRACTS = ("Clip", "Relu", "Sigmoid", "Tanh", "HardSigmoid")
#: Where an operator is neither, this share of the output's largest value is taken.
_UNKNOWN_SHARE = 0.25
#: Float rounding in either runtime.
_FLOAT_SHARE = 1e-4


def output_bound(index: GraphIndex, plan: Plan, scales: Scales, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Return, for each graph output, the largest absolute difference that the pairs may make for one feed."""
    values = _values(index, feed)
    by_pair = {(s.tensor, s.quantizer): np.array(s.scales, np.float64) for s in scales.by_pair}
    pairs = {p.edge: (p.quantizer, by_pair[p.edge.tensor, p.quantizer]) for p in plan.placements}
    errors: dict[str, Array] = {}
    for node in index.nodes:
        edges = [Edge("", node.label, slot, tensor) for slot, tensor in enumerate(node.inputs)]
        given = [_edge_error(pairs.get(e), values.get(e.tensor), errors.get(e.tensor)) for e in edges]
        for name, error in zip(node.outputs, _node_error(index, node, values, given), strict=False):
            errors[name] = np.abs(error)
    return {o: errors.get(o, np.zeros(())) + _FLOAT_SHARE * np.abs(values[o]).max(initial=0.0) + _FLOAT_SHARE for o in index.outputs}


def _values(index: GraphIndex, feed: Mapping[str, Array]) -> dict[str, Array]:
    model = onnx.ModelProto()
    model.CopyFrom(index.source.model)
    names = [o for n in index.nodes for o in n.outputs if o]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    constants = {name: index.constant(name) for name in index.initializers}
    return {**constants, **feed, **dict(zip(names, ReferenceEvaluator(model).run(None, dict(feed)), strict=True))}


def _edge_error(pair: tuple[Quantizer, Array] | None, value: Array | None, error: Array | None) -> Array:
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


def _node_error(index: GraphIndex, node: Node, values: Mapping[str, Array], errors: list[Array]) -> list[Array]:
    if not any(np.any(e) for e in errors):
        return [np.zeros_like(values[o], np.float64) for o in node.outputs]
    if node.op in PRODUCTS:
        return _product_error(index, node, values, errors)
    if node.op in ("Add", "Sub", "Sum"):
        return [np.broadcast_to(sum(errors), values[node.outputs[0]].shape)]
    if node.op in _CONTRACTS:
        return [errors[0]]
    if node.op in _PASSES_ERROR:
        rest = [values[i] for i in node.inputs[1:]] if node.op != "Concat" else errors[1:]
        return _run(index, node, [errors[0], *rest])
    return [np.full_like(values[o], _UNKNOWN_SHARE * np.abs(values[o]).max(initial=0.0), np.float64) for o in node.outputs]


def _product_error(index: GraphIndex, node: Node, values: Mapping[str, Array], errors: list[Array]) -> list[Array]:
    """|(x+dx)(w+dw) - xw| <= (|x|+|dx|)(|w|+|dw|) - |x||w|, summed as the operator sums."""
    a, b = (np.abs(values[i]) for i in node.inputs[:2])
    grown = _run(index, node, [a + errors[0], b + errors[1]])
    return [grown[0] - _run(index, node, [a, b])[0]]


def _run(index: GraphIndex, node: Node, inputs: list[Array]) -> list[Array]:
    """Return what the operator makes of other inputs; a bias is left out."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[len(inputs) :]
    feeds = {f"i{k}": v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in enumerate(inputs)}
    proto.input[:] = list(feeds)
    declared = [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()]
    graph = onnx.helper.make_graph([proto], "bound", declared, [onnx.helper.make_empty_tensor_value_info(o) for o in proto.output])
    model = onnx.helper.make_model(graph, opset_imports=index.source.model.opset_import)
    return [np.asarray(v, np.float64) for v in ReferenceEvaluator(model).run(None, feeds)]
