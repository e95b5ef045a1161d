"""Evaluation of nodes whose results follow from the model file alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    ValueInfoProto,
)
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from qdq.arrays import Array
from qdq.graph.bodies import list_names, node_bodies, node_tensors
from qdq.graph.plugins import DEFAULT_DOMAINS, is_default_plugin, iterate_nodes

#: The reference evaluator has no DequantizeLinear of earlier opsets, which computes the same.
_FIRST_EVALUABLE_PAIR = 19

#: Operators of every opset that the reference evaluator implements for all types: to load it takes
#: as long as to check a small model.
_EVALUABLE = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Reshape", "Transpose", "Unsqueeze")
)

_RANDOM_PREFIXES = ("Random", "Multinomial", "Bernoulli")


def is_foldable(node: NodeProto, opset: int) -> bool:
    """Whether a node returns a constant where all tensors that it reads are constant.

    Random operators, plugins and operators of other domains do not, nor do Loop and Scan, nor an If
    with one of these in a branch.
    """
    return all(_is_defined_by_inputs(part, opset) for part in iterate_nodes([node]))


def _is_defined_by_inputs(node: NodeProto, opset: int) -> bool:
    """Whether ONNX defines a node's outputs by its inputs alone."""
    if node.domain not in DEFAULT_DOMAINS or node.op_type.startswith(_RANDOM_PREFIXES):
        return False
    if node.op_type != "If" and node_bodies(node):
        return False
    return not is_default_plugin(node, opset)


def is_evaluable(node: NodeProto, opset_imports: Iterable[OperatorSetIdProto]) -> bool:
    """Whether ONNX's reference evaluator implements the operator of a node and of its bodies."""
    if node.domain in DEFAULT_DOMAINS and node.op_type in _EVALUABLE:
        return True
    from onnx.reference import ReferenceEvaluator

    inputs: list[ValueInfoProto] = []
    for name in filter(None, node.input):
        # Some operators are expanded by the type of their inputs.
        value = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        inputs.append(value)
    try:
        model = _make_model([node], (), inputs, node.output, opset_imports)
        _empty_external_data(model.graph)
        ReferenceEvaluator(model)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return True


def evaluate_node(
    node: NodeProto,
    feeds: Mapping[str, Array],
    opset_imports: Iterable[OperatorSetIdProto],
    folder: Path | None,
) -> list[Array]:
    """Return the outputs of a node by ONNX's reference evaluator, which documents no exceptions.

    `folder` is that of the model's external data.
    """
    inputs = [_describe_value(name, value) for name, value in feeds.items()]
    model = _make_model([node], (), inputs, node.output, opset_imports)
    return _run_model(model, feeds, folder)


def evaluate_branch(
    branch: GraphProto,
    feeds: Mapping[str, Array],
    opset_imports: Iterable[OperatorSetIdProto],
    folder: Path | None,
) -> list[Array]:
    """Return the outputs of a branch of an If by ONNX's reference evaluator."""
    inputs = [_describe_value(name, value) for name, value in feeds.items()]
    names = list_names(branch.output)
    model = _make_model(branch.node, branch.initializer, inputs, names, opset_imports)
    return _run_model(model, feeds, folder)


def _make_model(
    nodes: Iterable[NodeProto],
    initializers: Iterable[TensorProto],
    inputs: list[ValueInfoProto],
    outputs: Iterable[str],
    opset_imports: Iterable[OperatorSetIdProto],
) -> ModelProto:
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = onnx.helper.make_graph(list(nodes), "constant", inputs, results, list(initializers))
    model = onnx.helper.make_model(graph, opset_imports=opset_imports)
    if all(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        _raise_opset(model, _FIRST_EVALUABLE_PAIR)
    return model


def _raise_opset(model: ModelProto, opset: int) -> None:
    for opset_import in model.opset_import:
        if opset_import.domain in DEFAULT_DOMAINS:
            opset_import.version = max(opset_import.version, opset)


def _run_model(model: ModelProto, feeds: Mapping[str, Array], folder: Path | None) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    _store_external_data(model.graph, folder)
    with np.errstate(all="ignore"):  # a scale of zero, or values beyond a type
        results = ReferenceEvaluator(model).run(None, dict(feeds))
    return [np.asarray(result) for result in results]


def _store_external_data(graph: GraphProto, folder: Path | None) -> None:
    """Replace external data, of initializers and attributes, by its values."""
    for tensor in (*graph.initializer, *node_tensors(graph.node)):
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(folder or ""))
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT


def _empty_external_data(graph: GraphProto) -> None:
    """Replace external data of attributes by no values."""
    for tensor in node_tensors(graph.node):
        if uses_external_data(tensor):
            tensor.ClearField("external_data")
            tensor.ClearField("dims")
            tensor.data_location = TensorProto.DEFAULT
            tensor.dims.append(0)


def _describe_value(name: str, value: Array) -> ValueInfoProto:
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, elem_type, value.shape)
