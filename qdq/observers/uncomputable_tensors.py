"""Planned tensors that ONNX Runtime cannot compute, because it lacks an operator before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import NodeProto

from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.observers.observer import build_observed_model
from qdq.observers.tensor_statistics import ObservedTensor, TensorKey
from qdq.planning.decisions import Plan
from qdq.runtime.unknown_operators import (
    describe_node,
    find_unknown_node,
    find_unknown_operators,
)

#: Tensors and nodes that a message names.
_MOST_NAMES = 5


def find_uncomputable_tensors(
    index: GraphIndex, observed: Sequence[ObservedTensor], libraries: Sequence[Path]
) -> dict[str, NodeProto]:
    """Return the node of an unknown operator that each such tensor needs, by the tensor's name."""
    unknown = find_unknown_operators(index.source.model, libraries)
    if not unknown:
        return {}
    observed_model = build_observed_model(index, {tensor.source for tensor in observed})
    model = observed_model.index.source.model
    if find_unknown_node(model, observed_model.outputs, unknown) is None:
        return {}
    needed_nodes: dict[TensorKey, NodeProto] = {}
    for output in observed_model.outputs:
        node = find_unknown_node(model, [output], unknown)
        if node is not None:
            needed_nodes[observed_model.locate_tensor(output)] = node
    uncomputable: dict[str, NodeProto] = {}
    for tensor in observed:
        if tensor.source in needed_nodes:
            uncomputable[tensor.read] = needed_nodes[tensor.source]
    return uncomputable


def require_computable(
    index: GraphIndex, plan: Plan, observed: Sequence[ObservedTensor], libraries: Sequence[Path]
) -> None:
    """Raise ModelError for planned tensors that depend on an operator which ONNX Runtime lacks."""
    uncomputable = find_uncomputable_tensors(index, observed, libraries)
    if not uncomputable:
        return
    plugins = _join(dict.fromkeys(describe_node(node) for node in uncomputable.values()))
    tensors = _join({repr(name): None for name in uncomputable})
    readers = _join(_list_readers(plan, uncomputable))
    raise ModelError(
        f"{index.source.path or index.source.name}: ONNX Runtime lacks the operator of {plugins}, "
        f"on which these planned tensors depend: {tensors}. Pass its library to --ort-library, "
        f"the tensors' ranges to --ranges, or keep their readers in float: {readers}."
    )


def _list_readers(plan: Plan, tensors: Mapping[str, NodeProto]) -> dict[str, None]:
    """Return an option for each node that reads one of some tensors quantized."""
    options: dict[str, None] = {}
    for placement in plan.placements:
        edge = placement.edge
        if edge.qualified_tensor in tensors:
            label = f"{edge.graph}/{edge.node}" if edge.graph else edge.node
            options[f"--leave-float '{label}'"] = None
    return options


def _join(names: Mapping[str, None]) -> str:
    """Return names as a list in a sentence, the first ones of many."""
    shown = list(names)[:_MOST_NAMES]
    more = len(names) - len(shown)
    text = ", ".join(shown)
    return f"{text} and {more} more" if more else text
