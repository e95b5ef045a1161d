"""TensorRT's own Q/DQ operators, such as trt::TRT_FP8QuantizeLinear, as ONNX's.

TensorRT's parser reads them as QuantizeLinear and DequantizeLinear of the type in their name
(onnx-tensorrt, onnxOpImporters.cpp). Model Optimizer writes them, and DequantizeLinear in the same
domain, into models whose opset has no Q/DQ of that type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qdq.graph.bodies import all_graphs
from qdq.graph.opset import raise_opset
from qdq.graph.pairs import stored_tensors
from qdq.graph.plugins import OperatorId, iterate_nodes
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.unique_names import UniqueNames

_DOMAIN = "trt"

_FP8 = TensorProto.FLOAT8E4M3FN
_INT4 = TensorProto.INT4

#: By TensorRT's operator: ONNX's, and the type of the quantized values.
_OPERATORS: Mapping[str, tuple[str, int]] = {
    "TRT_FP8QuantizeLinear": (QUANTIZE, _FP8),
    "TRT_FP8DequantizeLinear": (DEQUANTIZE, _FP8),
    "TRT_INT4QuantizeLinear": (QUANTIZE, _INT4),
    "TRT_INT4DequantizeLinear": (DEQUANTIZE, _INT4),
}

#: The first opset whose Q/DQ has a type (ONNX operator changelog).
_TYPE_OPSETS: Mapping[int, int] = {_FP8: 19, _INT4: 21}
_TYPE_LABELS: Mapping[int, str] = {_FP8: "FP8", _INT4: "INT4"}

_SCALE_SLOT = 1
_OPERANDS = 2


def convert_tensorrt_pairs(
    model: ModelProto, operators: Iterable[OperatorId]
) -> tuple[ModelProto, tuple[str, ...]]:
    """Return a model with ONNX's Q/DQ in place of TensorRT's, and a note for each change.

    `operators` are those of its nodes, by domain and name. Its opset is raised to one that has Q/DQ
    of their types. The model itself comes back where it has none of them.
    """
    if not any(domain == _DOMAIN or operator in _OPERATORS for domain, operator in operators):
        return model, ()
    count = sum(map(_is_tensorrt_half, iterate_nodes(model.graph.node)))
    if not count:
        return model, ()
    element = max(_element_types(model.graph), key=lambda code: _TYPE_OPSETS.get(code, 0))
    opset = _TYPE_OPSETS.get(element, 0)
    raised, opset_notes = raise_opset(model, opset, _TYPE_LABELS.get(element, ""))
    converted = ModelProto()
    converted.CopyFrom(raised)
    names = UniqueNames(converted.graph, include_value_info=True)
    zero_points = list(_convert_nodes(converted.graph, names))
    converted.graph.initializer.extend(zero_points)
    _remove_unused_domain(converted)
    verb = "operator of TensorRT was" if count == 1 else "operators of TensorRT were"
    return converted, (*opset_notes, f"{count} Q/DQ {verb} replaced by ONNX's")


def holds_tensorrt_pairs(model: ModelProto) -> bool:
    """Whether a model holds Q/DQ operators of TensorRT."""
    return any(map(_is_tensorrt_half, iterate_nodes(model.graph.node)))


def _is_tensorrt_half(node: NodeProto) -> bool:
    """Whether a node is a Q or DQ of TensorRT with its operands."""
    operator = node.op_type
    is_pair_operator = operator in (QUANTIZE, DEQUANTIZE) and node.domain == _DOMAIN
    return (is_pair_operator or operator in _OPERATORS) and len(node.input) >= _OPERANDS


def _element_types(graph: GraphProto) -> Iterator[int]:
    """Yield the quantized type of each Q and DQ of TensorRT in a graph and its bodies."""
    for inner in all_graphs(graph):
        stored = stored_tensors(inner)
        for node in inner.node:
            if node.op_type in _OPERATORS:
                yield _OPERATORS[node.op_type][1]
            elif _is_tensorrt_half(node):
                tensor = stored.get(node.input[0])
                yield tensor.data_type if tensor is not None else TensorProto.UNDEFINED


def _convert_nodes(graph: GraphProto, names: UniqueNames) -> Iterator[TensorProto]:
    """Convert the nodes of a graph and its bodies, and yield the zero points that they read."""
    for inner in all_graphs(graph):
        stored = {**stored_tensors(graph), **stored_tensors(inner)}
        for node in inner.node:
            if not _is_tensorrt_half(node):
                continue
            node.domain = ""
            if node.op_type not in _OPERATORS:
                continue
            node.op_type, element = _OPERATORS[node.op_type]
            if len(node.input) == _OPERANDS:
                scale = stored.get(node.input[_SCALE_SLOT])
                dims = list(scale.dims) if scale is not None else []
                zero_point = _make_zero_point(dims, element, names)
                node.input.append(zero_point.name)
                yield zero_point


def _make_zero_point(dims: list[int], element: int, names: UniqueNames) -> TensorProto:
    size = math.prod(dims)
    content = bytes(math.ceil(size / 2) if element == _INT4 else size)
    name = names.fresh("zero_point")
    return TensorProto(name=name, data_type=element, dims=dims, raw_data=content)


def _remove_unused_domain(model: ModelProto) -> None:
    if any(node.domain == _DOMAIN for node in iterate_nodes(model.graph.node)):
        return
    for position in reversed(range(len(model.opset_import))):
        if model.opset_import[position].domain == _DOMAIN:
            del model.opset_import[position]
