"""Evaluation of nodes whose results follow from the model file alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from qdq.arrays import Array
from qdq.graph.bodies import node_bodies, node_tensors
from qdq.graph.plugins import DEFAULT_DOMAINS, is_default_plugin, iterate_nodes

_RANDOM_PREFIXES = ("Random", "Multinomial", "Bernoulli")


def is_foldable(node: NodeProto, opset: int) -> bool:
    """Whether a node with inputs returns a constant where all of these are constant.

    Random operators, plugins and operators of other domains do not, nor do Loop and Scan.
    """
    if node.op_type != "If" and node_bodies(node):
        return False
    return all(_is_evaluable(part, opset) for part in iterate_nodes([node]))


def _is_evaluable(node: NodeProto, opset: int) -> bool:
    """Whether ONNX defines a node's outputs by its inputs alone."""
    if node.domain not in DEFAULT_DOMAINS or node.op_type.startswith(_RANDOM_PREFIXES):
        return False
    return not is_default_plugin(node, opset)


def evaluate_node(
    node: NodeProto,
    feeds: Mapping[str, Array],
    opset_imports: Iterable[OperatorSetIdProto],
    folder: Path | None,
) -> list[Array]:
    """Return the outputs of a node by ONNX's reference evaluator, which documents no exceptions.

    `folder` is that of the model's external data.
    """
    from onnx.reference import ReferenceEvaluator

    node = _with_stored_data(node, folder)
    inputs = [_describe_value(name, value) for name, value in feeds.items()]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=opset_imports)
    results = ReferenceEvaluator(model).run(None, dict(feeds))
    return [np.asarray(result) for result in results]


def _with_stored_data(node: NodeProto, folder: Path | None) -> NodeProto:
    """Return a copy of a node that holds the external data of its attributes, if it has any."""
    if not any(uses_external_data(tensor) for tensor in node_tensors([node])):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    for tensor in node_tensors([copy]):
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(folder or ""))
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
    return copy


def _describe_value(name: str, value: Array) -> ValueInfoProto:
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, elem_type, value.shape)
