"""Writing a model's own functions out where they are called, and saying so, so that every stage sees plain nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import inliner

from qdq.errors import ModelError

#: Domain and name, of a function or of the operator of a node.
Id = tuple[str, str]
_DEFAULT = ("", "ai.onnx")


def inline_functions(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model with the calls of its own functions replaced by what these hold, and a note of which.

    The model itself comes back where it calls none. All are written out, also those that share a name
    with an operator that a runtime knows: by ONNX's definition the function is what such a node
    computes. ONNX's inliner does it; it ends new names in ``__N``, with one N for each call. A function
    of another opset whose operators it cannot raise stays, and so do its calls.
    Raises ModelError for functions that call each other in a circle.
    """
    functions = {(f.domain, f.name): f for f in model.functions}
    called = _reached(model.graph.node, functions)
    if not called:
        return model, ()
    inlined = _inlined(model)
    done = called - _reached(inlined.graph.node, functions)
    if not done:
        return model, ()
    return inlined, (
        f"model-local functions inlined: {', '.join(sorted(f'{domain}.{name}' if domain else name for domain, name in done))}",
    )


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    aligned = onnx.ModelProto()
    aligned.CopyFrom(model)
    opsets = {e.domain: e.version for e in model.opset_import}
    for function in aligned.functions:
        _align(function, opsets)
    inlined = _try(aligned, convert=False)
    mixed = any(
        e.version != opsets.get(e.domain, e.version)
        for f in inlined.functions
        for e in f.opset_import
    )
    return _try(inlined, convert=True) if mixed else inlined


def _align(function: onnx.FunctionProto, opsets: Mapping[str, int]) -> None:
    """Give a function the model's version of ONNX's operator set where each of its operators is the same in both."""
    for entry in function.opset_import:
        wanted = opsets.get(entry.domain, entry.version)
        used = {op for domain, op in _operators(function.node) if domain in _DEFAULT}
        if entry.domain in _DEFAULT and all(
            _since(op, entry.version) == _since(op, wanted) for op in used
        ):
            entry.version = wanted


def _since(operator: str, opset: int) -> int:
    try:
        return int(onnx.defs.get_schema(operator, opset, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def _try(model: onnx.ModelProto, convert: bool) -> onnx.ModelProto:
    """Return what ONNX's inliner makes of a model, or the model where it fails; to convert opsets it wants to know all types."""
    try:
        inlined: onnx.ModelProto = inliner.inline_local_functions(
            onnx.shape_inference.infer_shapes(model) if convert else model, convert_version=convert
        )
    except Exception:  # noqa: BLE001 whatever it throws, the functions stay and the plan names them
        return model
    known = {v.name for v in model.graph.value_info}
    kept = [v for v in inlined.graph.value_info if v.name in known]
    del inlined.graph.value_info[:]
    inlined.graph.value_info.extend(kept)
    return inlined


def _reached(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[Id, onnx.FunctionProto]
) -> set[Id]:
    """Return the functions that some nodes call, those that functions call too; raises ModelError for a circle."""
    calls = {
        key: set(_operators(function.node)) & functions.keys()
        for key, function in functions.items()
    }
    try:
        order = tuple(TopologicalSorter(calls).static_order())
    except CycleError as error:
        domain, name = error.args[1][0]
        raise ModelError(
            f"is damaged: its function {domain}.{name} calls itself; export or download it again"
        ) from error
    reached = set(_operators(nodes)) & functions.keys()
    for key in reversed(order):
        reached |= calls[key] if key in reached else set()
    return reached


def _operators(nodes: Iterable[onnx.NodeProto]) -> Iterator[Id]:
    """Yield the domain and operator of some nodes and of those in their bodies."""
    for node in nodes:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _operators(body.node)
