"""Plugins: operators that ONNX does not define, such as TensorRT's, as ONNX's tools accept them.

ONNX's checker, version converter and shape inference stop at an unknown operator of ONNX's own
domain, and at a domain that the model does not import. TensorRT looks for a plugin by its name
alone, so exporters write both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cache

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto

from qdq.errors import ModelError
from qdq.graph.bodies import node_bodies

#: Domain and name of an operator.
OperatorId = tuple[str, str]

#: The names of ONNX's own domain.
DEFAULT_DOMAINS = ("", "ai.onnx")

#: The domain that plugins of ONNX's own domain have meanwhile.
_PLUGIN_DOMAIN = "qdq.plugins"

#: Operators that ONNX adopted unchanged from ONNX Runtime, which writes them at any opset.
_ADOPTED = ("LayerNormalization",)

_OpSchema = onnx.defs.OpSchema


@cache
def find_schema(operator: str, opset: int) -> _OpSchema | None:
    """Return the definition of an operator of ONNX's own domain, None where it has none."""
    try:
        return onnx.defs.get_schema(operator, opset, "")
    except (onnx.defs.SchemaError, TypeError):  # TypeError: an opset beyond 32 bits
        return None


def iterate_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield some nodes and those of their bodies."""
    for node in nodes:
        yield node
        for _, body in node_bodies(node):
            yield from iterate_nodes(body.node)


def list_missing_imports(
    nodes: Iterable[NodeProto], imports: Iterable[OperatorSetIdProto]
) -> list[OperatorSetIdProto]:
    """Return imports of the domains that nodes and their bodies use without one, in version 1."""
    imported = {entry.domain for entry in imports}
    imported.update(DEFAULT_DOMAINS)
    missing = {node.domain for node in iterate_nodes(nodes)} - imported
    return [OperatorSetIdProto(domain=domain, version=1) for domain in sorted(missing)]


def declare_plugins(model: ModelProto) -> ModelProto:
    """Return a copy whose plugins ONNX's tools take; the model itself where they take it as it is.

    Plugins of ONNX's own domain are in another one, and every domain is imported.
    """
    functions = _function_ids(model)
    if not any(_needs_declaration(part, functions) for part in _list_parts(model)):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    for part in _list_parts(copy):
        nodes = _nodes_of(part)
        for node in _find_default_plugins(part, functions):
            node.domain = _PLUGIN_DOMAIN
        part.opset_import.extend(list_missing_imports(nodes, part.opset_import))
    return copy


def restore_plugins(model: ModelProto, original: ModelProto) -> None:
    """Undo `declare_plugins` in a model that was made from the declared copy of `original`.

    Raises ModelError for a plugin whose name is an ONNX operator's in the opset that the model has
    by now.
    """
    opset = own_opset(model.opset_import)
    for node in iterate_nodes(model.graph.node):
        if node.domain == _PLUGIN_DOMAIN:
            _require_free_name(node, opset)
    imported = {entry.domain for entry in original.opset_import}
    for function in original.functions:
        imported.update(entry.domain for entry in function.opset_import)
    for part in _list_parts(model):
        for node in iterate_nodes(_nodes_of(part)):
            if node.domain == _PLUGIN_DOMAIN:
                node.domain = ""
        kept = [entry for entry in part.opset_import if entry.domain in imported]
        del part.opset_import[:]
        part.opset_import.extend(kept)


def _require_free_name(node: NodeProto, opset: int) -> None:
    """Raise ModelError for a plugin that a newer opset would make an operator of ONNX."""
    if node.op_type not in _ADOPTED and find_schema(node.op_type, opset) is not None:
        title = node.name or ", ".join(node.output)
        raise ModelError(
            f"node {title} ({node.op_type}) is no operator of the model's opset, but one of opset "
            f"{opset}, which Q/DQ needs. Export the model with opset {opset}, or give the node a "
            "domain of its own."
        )


def _list_parts(model: ModelProto) -> list[ModelProto | FunctionProto]:
    """Return the parts with imports of their own: the model, and each of its functions."""
    return [model, *model.functions]


def _nodes_of(part: ModelProto | FunctionProto) -> Iterable[NodeProto]:
    graph = part.graph if isinstance(part, ModelProto) else part
    nodes: Iterable[NodeProto] = graph.node
    return nodes


def _function_ids(model: ModelProto) -> frozenset[OperatorId]:
    return frozenset((function.domain, function.name) for function in model.functions)


def _needs_declaration(part: ModelProto | FunctionProto, functions: Collection[OperatorId]) -> bool:
    if list_missing_imports(_nodes_of(part), part.opset_import):
        return True
    return any(True for _ in _find_default_plugins(part, functions))


def _find_default_plugins(
    part: ModelProto | FunctionProto, functions: Collection[OperatorId]
) -> Iterator[NodeProto]:
    """Yield the nodes of ONNX's own domain whose operators its opset does not have."""
    opset = own_opset(part.opset_import)
    if not opset:
        return
    for node in iterate_nodes(_nodes_of(part)):
        if is_default_plugin(node, opset, functions):
            yield node


def is_default_plugin(node: NodeProto, opset: int, functions: Collection[OperatorId] = ()) -> bool:
    """Whether a node is of ONNX's own domain, which has no such operator in this opset.

    A call of one of the model's own `functions` is not.
    """
    if node.domain not in DEFAULT_DOMAINS or (node.domain, node.op_type) in functions:
        return False
    return find_schema(node.op_type, opset) is None


def own_opset(imports: Iterable[OperatorSetIdProto]) -> int:
    """Return the imported version of ONNX's own operators, 0 where none is imported."""
    for entry in imports:
        if entry.domain in DEFAULT_DOMAINS:
            return int(entry.version)
    return 0


def list_plugins(model: ModelProto) -> frozenset[OperatorId]:
    """Return the operators that neither ONNX nor the model defines.

    A runtime may have them nevertheless, as ONNX Runtime has those of ``com.microsoft``.
    """
    functions = _function_ids(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = own_opset(model.opset_import)
    plugins: set[OperatorId] = set()
    for node in iterate_nodes(model.graph.node):
        operator = (node.domain, node.op_type)
        if node.domain in DEFAULT_DOMAINS:
            if is_default_plugin(node, opset, functions):
                plugins.add(operator)
        elif operator not in functions and not _is_defined(operator, versions):
            plugins.add(operator)
    return frozenset(plugins)


def _is_defined(operator: OperatorId, versions: dict[str, int]) -> bool:
    """Whether ONNX defines an operator of another domain of its own, such as ``ai.onnx.ml``."""
    domain, name = operator
    return bool(onnx.defs.has(name, versions.get(domain, 1), domain))
