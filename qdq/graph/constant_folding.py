"""Evaluation of nodes whose results follow from the model file alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import NodeProto, OperatorSetIdProto, ValueInfoProto

from qdq.arrays import Array
from qdq.graph.bodies import node_bodies

_RANDOM_PREFIXES = ("Random", "Multinomial", "Bernoulli")


def is_foldable(node: NodeProto) -> bool:
    """Whether a node with inputs returns a constant where all of these are constant.

    Random operators and operators of other domains do not, nor do Loop and Scan.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type.startswith(_RANDOM_PREFIXES):
        return False
    return node.op_type == "If" or not node_bodies(node)


def evaluate_node(
    node: NodeProto,
    feeds: Mapping[str, Array],
    opset_imports: Iterable[OperatorSetIdProto],
) -> list[Array]:
    """Return the outputs of a node by ONNX's reference evaluator, which documents no exceptions."""
    from onnx.reference import ReferenceEvaluator

    inputs = [_describe_value(name, value) for name, value in feeds.items()]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = onnx.helper.make_graph([node], "constant", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=opset_imports)
    results = ReferenceEvaluator(model).run(None, dict(feeds))
    return [np.asarray(result) for result in results]


def _describe_value(name: str, value: Array) -> ValueInfoProto:
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, elem_type, value.shape)
