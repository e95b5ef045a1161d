"""Inlining of a model's own functions, so that every stage sees plain nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, inliner

from qdq.errors import ModelError
from qdq.graph.bodies import list_names, node_bodies
from qdq.graph.plugins import (
    DEFAULT_DOMAINS,
    OperatorId,
    declare_plugins,
    find_schema,
    restore_plugins,
)

#: The operators of each function, with how many of its nodes have each.
_Calls = Mapping[OperatorId, Counter[OperatorId]]

#: The most functions that call each other in a chain: ONNX's own limit, of shape inference.
_DEEPEST_CHAIN = 100

#: The most nodes that a model may have with all calls inlined. Functions that each call the next
#: one twice are a small file of more nodes than any memory holds.
_MOST_NODES = 300_000


def inline_functions(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """Return the model with the calls of its own functions inlined, and a note that names these.

    The model itself comes back where it calls none. A function that shares its name with an
    operator of a runtime is inlined too: by ONNX's definition such a node computes the function.
    ONNX's inliner ends new names in ``__N``, with one N for each call. A function of another opset
    whose operators it cannot raise stays, and so do its calls.
    Raises ModelError for functions that call each other in a circle or too deeply, and for more
    nodes than a model can have.
    """
    if not model.functions:
        return model, ()
    functions = {(f.domain, f.name): f for f in model.functions}
    calls = {key: Counter(_node_operators(function.node)) for key, function in functions.items()}
    order = _sort_functions(calls)
    called = _find_called(model.graph, calls, order)
    if not called:
        return model, ()
    _require_few_nodes(model.graph, calls, order)
    inlined_model = _inline_aligned(model)
    remaining = _find_called(inlined_model.graph, calls, order)
    inlined = called - remaining
    if remaining:
        _require_short_chain(calls, order)
    if not inlined:
        return model, ()
    names = sorted(_format_id(key) for key in inlined)
    return inlined_model, (f"model-local functions inlined: {', '.join(names)}",)


def _format_id(key: OperatorId) -> str:
    domain, name = key
    return f"{domain}.{name}" if domain else name


def _inline_aligned(model: ModelProto) -> ModelProto:
    """Return the model after inlining: first functions of its opset, then those to convert."""
    aligned = ModelProto()
    aligned.CopyFrom(model)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for function in aligned.functions:
        _align_opset(function, opsets)
    inlined = _run_inliner(aligned, convert=False)
    if any(_has_other_opset(function, opsets) for function in inlined.functions):
        return _run_inliner(inlined, convert=True)
    return inlined


def _align_opset(function: FunctionProto, opsets: Mapping[str, int]) -> None:
    """Set a function's opset to the model's where its operators are the same in both."""
    operators = set()
    for domain, operator in _node_operators(function.node):
        if domain in DEFAULT_DOMAINS:
            operators.add(operator)
    for entry in function.opset_import:
        if entry.domain not in DEFAULT_DOMAINS:
            continue
        version = opsets.get(entry.domain, entry.version)
        if all(_is_same_operator(name, entry.version, version) for name in operators):
            entry.version = version


def _has_other_opset(function: FunctionProto, opsets: Mapping[str, int]) -> bool:
    entries = function.opset_import
    return any(entry.version != opsets.get(entry.domain, entry.version) for entry in entries)


def _is_same_operator(operator: str, opset: int, other_opset: int) -> bool:
    return _find_since_version(operator, opset) == _find_since_version(operator, other_opset)


def _find_since_version(operator: str, opset: int) -> int:
    """Return the opset in which an operator got its definition, 0 for an unknown operator."""
    schema = find_schema(operator, opset)
    return 0 if schema is None else int(schema.since_version)


def _run_inliner(model: ModelProto, convert: bool) -> ModelProto:
    """Return the model after ONNX's inliner, or the model itself where that fails.

    With `convert`, it also converts functions of other opsets, for which it needs all types.
    """
    try:
        typed = model
        if convert:
            typed = onnx.shape_inference.infer_shapes(declare_plugins(model))
        inlined: ModelProto = inliner.inline_local_functions(typed, convert_version=convert)
        if convert:
            restore_plugins(inlined, model)
    except Exception:  # noqa: BLE001 whatever it throws, the functions stay and the plan names them
        return model
    known = set(list_names(model.graph.value_info))
    kept = [value for value in inlined.graph.value_info if value.name in known]
    del inlined.graph.value_info[:]
    inlined.graph.value_info.extend(kept)
    return inlined


def _sort_functions(calls: _Calls) -> tuple[OperatorId, ...]:
    """Return the functions, each after those that it calls.

    Raises ModelError for functions that call each other in a circle.
    """
    graph = {key: operators.keys() & calls.keys() for key, operators in calls.items()}
    try:
        return tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        name = _format_id(error.args[1][0])
        raise ModelError(
            f"the model is damaged: its function {name} calls itself. Export or download it again."
        ) from error


def _find_called(
    graph: GraphProto, calls: _Calls, order: tuple[OperatorId, ...]
) -> set[OperatorId]:
    """Return the functions that a graph calls, also through other functions."""
    called = set(_node_operators(graph.node)) & calls.keys()
    for key in reversed(order):
        if key in called:
            called |= calls[key].keys() & calls.keys()
    return called


def _require_few_nodes(graph: GraphProto, calls: _Calls, order: tuple[OperatorId, ...]) -> None:
    """Raise ModelError for a graph of too many nodes once all calls are inlined."""
    counts: dict[OperatorId, int] = {}
    for key in order:
        counts[key] = _count_nodes(calls[key], counts)
    total = _count_nodes(Counter(_node_operators(graph.node)), counts)
    if total > _MOST_NODES and len(graph.node) < total:
        raise ModelError(
            f"its functions call each other so often that it has over {_MOST_NODES} nodes. "
            "Export it without functions."
        )


def _count_nodes(operators: Counter[OperatorId], counts: Mapping[OperatorId, int]) -> int:
    """Return the nodes of some operators, those of functions counted as their nodes."""
    return sum(number * counts.get(key, 1) for key, number in operators.items())


def _require_short_chain(calls: _Calls, order: tuple[OperatorId, ...]) -> None:
    """Raise ModelError for a chain of calls that ONNX's shape inference refuses."""
    depths: dict[OperatorId, int] = {}
    for key in order:
        inner = [depths[called] for called in calls[key] if called in depths]
        depths[key] = 1 + max(inner, default=0)
    deepest = max(depths.values())
    if deepest > _DEEPEST_CHAIN:
        raise ModelError(
            f"its functions call each other {deepest} deep, and ONNX reads {_DEEPEST_CHAIN}. "
            "Export it without functions."
        )


def _node_operators(nodes: Iterable[NodeProto]) -> Iterator[OperatorId]:
    """Yield the operators of some nodes and of those in their bodies."""
    for node in nodes:
        yield node.domain, node.op_type
        for _, body in node_bodies(node):
            yield from _node_operators(body.node)
