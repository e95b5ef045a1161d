"""Weights that are computed from the file alone, but whose values cannot be known from it."""

from __future__ import annotations

import math

import onnx

from qdq.graph.constant_folding import is_evaluable
from qdq.graph.constant_values import operand_names
from qdq.graph.index import GraphIndex, Node
from qdq.graph.patterns import cached_per_graph
from qdq.graph.shape_inference import known_sizes

#: The largest tensor that is computed from constants: protobuf stores no larger one.
_LARGEST_BYTES = 1 << 31
_GIB = 1 << 30


def explain_unknown_value(index: GraphIndex, tensor: str) -> str:
    """Return a sentence about why the value of a tensor that depends on the file alone is unknown.

    "" for a tensor whose value can be computed, and for one that depends on the model's inputs.
    """
    scope = index.defining_scope(tensor)
    if not scope.is_constant(tensor):
        node = _unfolded_tensors(scope).get(tensor)
        return _describe_operator(tensor, node) if node is not None else ""
    pending = [tensor]
    visited: set[str] = set()
    while pending:
        name = pending.pop()
        producer = scope.producers.get(name)
        if producer is None or producer.op == "Constant" or name in visited:
            continue
        visited.add(name)
        reason = _explain_refusal(scope, producer, tensor)
        if reason:
            return reason
        pending.extend(operand_names(scope, producer.proto))
    return ""


def _explain_refusal(index: GraphIndex, node: Node, tensor: str) -> str:
    """Return why a node on the way to a tensor is not evaluated, "" where it is."""
    if not is_evaluable(node.proto, index.source.model.opset_import):
        return _describe_operator(tensor, node)
    for name in filter(None, node.outputs):
        sizes = known_sizes(index.shape(name)) or ()
        elem_type = index.elem_type(name) or onnx.TensorProto.FLOAT
        count = math.prod(sizes)
        size = count * onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize
        if size >= _LARGEST_BYTES:
            return f"{name!r}, which is computed from constants, would take {size / _GIB:.0f} GiB."
    return ""


def _describe_operator(tensor: str, node: Node) -> str:
    return (
        f"{tensor!r} is computed from constants by {node.op} ({node.label!r}), whose result is "
        "unknown before the model runs."
    )


def depends_on_file_alone(index: GraphIndex, node: Node) -> bool:
    """Whether all results of a node are constants, or are computed from constants alone."""
    unfolded = _unfolded_tensors(index)
    results = [name for name in node.outputs if name]
    return all(name in unfolded or index.is_constant(name) for name in results)


@cached_per_graph
def _unfolded_tensors(index: GraphIndex) -> dict[str, Node]:
    """Return the tensors that depend on no input and are no constants.

    Each has the first node on the way to it whose result is unknown.
    """
    unfolded: dict[str, Node] = {}
    for node in index.nodes:
        origins: list[Node] = []
        for name in node.read_names:
            if name in unfolded:
                origins.append(unfolded[name])
            elif not index.is_constant(name):
                break
        else:
            for output in filter(None, node.outputs):
                if output not in index.constants:
                    unfolded[output] = origins[0] if origins else node
    return unfolded
