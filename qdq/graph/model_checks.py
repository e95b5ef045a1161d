"""Checks that a loaded model is complete: its nodes, its weights and its external data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo

from qdq.errors import ModelError, first_line
from qdq.graph.bodies import all_tensors, list_names, node_bodies, node_title
from qdq.graph.opset import default_opset
from qdq.graph.plugins import DEFAULT_DOMAINS, OperatorId, find_schema
from qdq.graph.source import external_tensors

_OpSchema = onnx.defs.OpSchema

#: Integer attributes of ONNX's operators whose numbers count something.
_COUNTS = ("group", "strides", "dilations", "kernel_shape", "blocksize", "hidden_size")
_SINGLE = _OpSchema.FormalParameterOption.Single

#: The largest version that ONNX's functions about opsets take, an int of C.
_LARGEST_VERSION = (1 << 31) - 1

#: Bytes of one element, of the types that weights usually have.
_ITEM_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.INT64: 8,
    TensorProto.INT32: 4,
}

#: Fields of a tensor's message that can hold its values instead of `raw_data`.
_LISTS_OF_VALUES = (
    "float_data",
    "int32_data",
    "int64_data",
    "string_data",
    "double_data",
    "uint64_data",
)


class _NodeContent(NamedTuple):
    """The fields of a node, each read once."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[AttributeProto, ...]

    @classmethod
    def read(cls, node: NodeProto) -> _NodeContent:
        """Return the content of a node."""
        inputs, outputs = tuple(node.input), tuple(node.output)
        return cls(node.op_type, node.domain, node.name, inputs, outputs, tuple(node.attribute))

    @property
    def names(self) -> tuple[str, ...]:
        """All names in the node."""
        attributes = list_names(self.attributes)
        return (self.operator, self.domain, self.name, *self.inputs, *self.outputs, *attributes)


def check_nodes(model: ModelProto) -> frozenset[OperatorId]:
    """Return the operators of a model's nodes and those in bodies, by domain and name.

    Raises ModelError for a node that its operator's definition rules out. Such a node has too few
    inputs or outputs, or an attribute of another type. Operators that ONNX does not know, such as
    TensorRT's plugins, pass.
    """
    _check_opsets(model)
    opset = default_opset(model)
    for entry in model.metadata_props:
        _require_text((entry.key, entry.value), "it")
    operators: set[OperatorId] = set()
    _check_graph(model.graph, "", opset, operators)
    return frozenset(operators)


def _check_opsets(model: ModelProto) -> None:
    """Raise ModelError for a domain that is not text, or a version that no opset can have."""
    imports = [*model.opset_import]
    for function in model.functions:
        imports += function.opset_import
    _require_text((entry.domain for entry in imports), "it")
    for entry in imports:
        if abs(entry.version) > _LARGEST_VERSION:
            raise _damaged(f"it imports version {entry.version} of an opset")


def _check_graph(graph: GraphProto, prefix: str, opset: int, operators: set[OperatorId]) -> None:
    """Check the nodes of a graph, then those of its bodies, and add their operators.

    `prefix` is before the names of nodes.
    """
    _require_text(_names_of_values(graph), "it")
    for i, node in enumerate(graph.node):
        content = _NodeContent.read(node)
        if not _are_text(content.names):
            raise _damaged(f"node {prefix}#{i} holds a name that is not text")
        defect = _find_defect(content, opset)
        if defect:
            title = f"{prefix}{node_title(node, i)}"
            raise _damaged(f"node {title} ({node.op_type}) has {defect}")
        operators.add((content.domain, content.operator))
    for i, node in enumerate(graph.node):
        for name, body in node_bodies(node):
            _check_graph(body, f"{prefix}{node_title(node, i)}.{name}/", opset, operators)


def _names_of_values(graph: GraphProto) -> Iterator[str]:
    yield graph.name
    for field in (graph.input, graph.output, graph.initializer):
        yield from list_names(field)


def _require_text(names: Iterable[object], holder: str) -> None:
    """Raise ModelError for a name that is not text."""
    if not _are_text(names):
        raise _damaged(f"{holder} holds a name that is not text")


def _are_text(names: Iterable[object]) -> bool:
    """Whether no name is in bytes, which protobuf returns where they are no UTF-8."""
    return set(map(type, names)) <= {str}


def _damaged(fact: str) -> ModelError:
    return ModelError(f"the model is damaged: {fact}. Export or download it again.")


def _find_defect(node: _NodeContent, opset: int) -> str:
    """Return how a node deviates from its operator's definition, "" where it does not."""
    defect = _find_odd_attribute(node.attributes)
    if defect or node.domain not in DEFAULT_DOMAINS:
        return defect
    schema = find_schema(node.operator, opset)
    if schema is None:
        return ""
    if len(node.inputs) < schema.min_input:
        return f"{len(node.inputs)} inputs, but the operator needs {schema.min_input}"
    if len(node.outputs) < schema.min_output:
        return f"{len(node.outputs)} outputs, but the operator returns {schema.min_output}"
    return (
        _find_unnamed("input", node.inputs, schema)
        or _find_unnamed("output", node.outputs, schema)
        or _find_wrong_attribute(node, opset)
    )


def _find_odd_attribute(attributes: tuple[AttributeProto, ...]) -> str:
    names: set[str] = set()
    for attribute in attributes:
        if attribute.ref_attr_name:
            return f"{attribute.name!r} by reference, as only the nodes of functions may have it"
        if attribute.name in names:
            return f"{attribute.name!r} twice"
        names.add(attribute.name)
    return ""


def _find_unnamed(kind: str, names: tuple[str, ...], schema: _OpSchema) -> str:
    if "" not in names:
        return ""
    parameters = schema.inputs if kind == "input" else schema.outputs
    for slot, (name, parameter) in enumerate(zip(names, parameters, strict=False)):
        if not name and parameter.option == _SINGLE:
            return f"no name for {kind} {slot} ({parameter.name}), which the operator needs"
    return ""


def _find_wrong_attribute(node: _NodeContent, opset: int) -> str:
    for attribute in node.attributes:
        required_type = _list_attribute_types(node.operator, opset).get(attribute.name)
        if required_type is None:
            continue
        if attribute.type != required_type:
            actual, required = map(
                AttributeProto.AttributeType.Name, (attribute.type, required_type)
            )
            return f"{attribute.name!r} as {actual}, but the operator takes {required}"
        if attribute.name in _COUNTS and min(_list_integers(attribute), default=1) < 1:
            numbers = ", ".join(map(str, _list_integers(attribute)))
            return f"{attribute.name!r} {numbers}, but it must be at least 1"
    return ""


@cache
def _list_attribute_types(operator: str, opset: int) -> dict[str, int]:
    """Return the types of the attributes of an operator of ONNX's own domain, by name."""
    schema = find_schema(operator, opset)
    types: dict[str, int] = {}
    for name, definition in schema.attributes.items() if schema else ():
        type_name = str(definition.type).rpartition(".")[2]
        types[name] = AttributeProto.AttributeType.Value(type_name)
    return types


def _list_integers(attribute: AttributeProto) -> list[int]:
    if attribute.type == AttributeProto.INT:
        return [attribute.i]
    return list(attribute.ints)


def check_weights(model: ModelProto) -> None:
    """Raise ModelError for a weight of an unknown type, or with less data than its shape needs."""
    known_types = frozenset(TensorProto.DataType.values())
    for tensor in all_tensors(model.graph):
        if tensor.data_type not in known_types:
            raise _damaged(f"weight {tensor.name!r} has the unknown type {tensor.data_type}")
        size = math.prod(tensor.dims)
        raw_bytes = len(tensor.raw_data)
        if size > 0 and not raw_bytes and not _has_other_values(tensor):
            raise _damaged(f"weight {tensor.name!r} holds no values")
        needed = size * _ITEM_BYTES.get(tensor.data_type, 0)
        if tensor.HasField("raw_data") and raw_bytes < needed:
            raise _damaged(
                f"weight {tensor.name!r} holds less than the {needed} bytes of its dimensions"
            )


def _has_other_values(tensor: TensorProto) -> bool:
    """Whether a tensor has values in another place than `raw_data`."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return True
    return any(getattr(tensor, field) for field in _LISTS_OF_VALUES)


def check_external_data(model: ModelProto, path: Path) -> list[str]:
    """Return the relative paths of the files with external data, sorted.

    Raises ModelError for data that is missing, truncated or outside the folder.
    """
    folder = path.parent.resolve()
    locations: set[str] = set()
    for tensor in external_tensors(model):
        locations.add(_check_external_tensor(tensor, path, folder))
    return sorted(locations)


def _check_external_tensor(tensor: TensorProto, path: Path, folder: Path) -> str:
    """Return the relative path of the file with a tensor's data."""
    name = tensor.name
    try:
        info = ExternalDataInfo(tensor)
        file = (folder / info.location).resolve()
        size = file.stat().st_size if file.is_file() else None
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path}: external data of tensor {name!r} cannot be found: {first_line(error)}. "
            "Export the model again."
        ) from error
    if not file.is_relative_to(folder):
        raise ModelError(
            f"{path}: tensor {name!r} points to {info.location!r}, outside the model's folder. "
            "Save the model with its data beside it."
        )
    if size is None:
        raise ModelError(
            f"{path}: external data file {info.location!r} of tensor {name!r} is missing. "
            "Put it beside the model."
        )
    if size < (info.offset or 0) + (info.length or 0):
        raise ModelError(
            f"{path}: external data file {info.location!r} ends before tensor {name!r}: "
            "it is truncated. Download or export it again."
        )
    return str(info.location)
