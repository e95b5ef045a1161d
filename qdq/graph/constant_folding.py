"""Evaluation of nodes whose results follow from the model file alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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

from qdq.arrays import Array
from qdq.graph.bodies import list_names, node_bodies

_RANDOM_PREFIXES = ("Random", "Multinomial", "Bernoulli")


def is_foldable(node: NodeProto) -> bool:
    """Whether a node returns a constant where all tensors that it reads are constant.

    Random operators and operators of other domains do not, nor do Loop and Scan, nor an If with one
    of these in a branch.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type.startswith(_RANDOM_PREFIXES):
        return False
    bodies = node_bodies(node)
    if bodies and node.op_type != "If":
        return False
    return all(is_foldable(inner) for _, body in bodies for inner in body.node)


def is_evaluable(node: NodeProto, opset_imports: Iterable[OperatorSetIdProto]) -> bool:
    """Whether ONNX's reference evaluator implements the operator of a node and of its bodies."""
    from onnx.reference import ReferenceEvaluator

    inputs: list[ValueInfoProto] = []
    for name in filter(None, node.input):
        # Some operators are expanded by the type of their inputs.
        value = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        inputs.append(value)
    try:
        ReferenceEvaluator(_make_model([node], (), inputs, node.output, opset_imports))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return True


def evaluate_node(
    node: NodeProto,
    feeds: Mapping[str, Array],
    opset_imports: Iterable[OperatorSetIdProto],
) -> list[Array]:
    """Return the outputs of a node by ONNX's reference evaluator, which documents no exceptions."""
    inputs = [_describe_value(name, value) for name, value in feeds.items()]
    model = _make_model([node], (), inputs, node.output, opset_imports)
    return _run_model(model, feeds)


def evaluate_branch(
    branch: GraphProto,
    feeds: Mapping[str, Array],
    opset_imports: Iterable[OperatorSetIdProto],
) -> list[Array]:
    """Return the outputs of a branch of an If by ONNX's reference evaluator."""
    inputs = [_describe_value(name, value) for name, value in feeds.items()]
    names = list_names(branch.output)
    model = _make_model(branch.node, branch.initializer, inputs, names, opset_imports)
    return _run_model(model, feeds)


def _make_model(
    nodes: Iterable[NodeProto],
    initializers: Iterable[TensorProto],
    inputs: list[ValueInfoProto],
    outputs: Iterable[str],
    opset_imports: Iterable[OperatorSetIdProto],
) -> ModelProto:
    results = [onnx.helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = onnx.helper.make_graph(list(nodes), "constant", inputs, results, list(initializers))
    return onnx.helper.make_model(graph, opset_imports=opset_imports)


def _run_model(model: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    results = ReferenceEvaluator(model).run(None, dict(feeds))
    return [np.asarray(result) for result in results]


def _describe_value(name: str, value: Array) -> ValueInfoProto:
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, elem_type, value.shape)
