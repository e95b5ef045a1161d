"""What a loaded model must hold: whole nodes, whole weights, external data in reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from qdq.errors import ModelError, first_line
from qdq.graph.opset import default_opset
from qdq.graph.source import all_tensors, external_tensors

#: Bytes of one element, of the types that weights usually have.
_ITEM_BYTES: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.INT64: 8,
    onnx.TensorProto.INT32: 4,
}

#: Where a tensor's values may lie in its message.
_DATA_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "string_data",
    "double_data",
    "uint64_data",
)


def check_nodes(model: onnx.ModelProto) -> None:
    """Raise ModelError for a node that its operator's definition rules out: too few inputs or outputs, an attribute of another type.

    Operators that ONNX does not know, such as TensorRT's plugins, are let through.
    """
    opset = default_opset(model)
    if not _are_texts(s for p in model.metadata_props for s in (p.key, p.value)):
        raise ModelError("is damaged: it holds a name that is no text; export or download it again")
    for path, graph in _graphs(model.graph):
        if not _are_texts(
            [
                graph.name,
                *(
                    item.name
                    for field in (graph.input, graph.output, graph.initializer)
                    for item in field
                ),
            ]
        ):
            raise ModelError(
                "is damaged: it holds a name that is no text; export or download it again"
            )
        for i, node in enumerate(graph.node):
            if not _are_texts((node.op_type, node.name, *node.input, *node.output)):
                raise ModelError(
                    f"is damaged: node {path}#{i} holds a name that is no text; export or download it again"
                )
            schema = _schema(node.op_type, opset) if node.domain in ("", "ai.onnx") else None
            if schema is not None and (wrong := _wrong_with(node, schema)):
                raise ModelError(
                    f"is damaged: node {path}{node.name or f'#{i}'} ({node.op_type}) has {wrong}; export or download it again"
                )


def _are_texts(names: Iterable[object]) -> bool:
    return all(isinstance(name, str) for name in names)


def _graphs(graph: onnx.GraphProto, path: str = "") -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield a graph and its bodies, each with what stands before the labels of its nodes."""
    yield path, graph
    for i, node in enumerate(graph.node):
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(body, f"{path}{node.name or f'#{i}'}.{attribute.name}/")


def check_weights(model: onnx.ModelProto) -> None:
    """Raise ModelError for a weight of no known type, or with less data than its dimensions need."""
    for tensor in all_tensors(model.graph):
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            raise ModelError(
                f"is damaged: weight {tensor.name!r} has the unknown type {tensor.data_type}; export or download it again"
            )
        needed = math.prod(tensor.dims) * _ITEM_BYTES.get(tensor.data_type, 0)
        if (
            math.prod(tensor.dims) > 0
            and not uses_external_data(tensor)
            and not any(getattr(tensor, field) for field in _DATA_FIELDS)
        ):
            raise ModelError(
                f"is damaged: weight {tensor.name!r} holds no values; export or download it again"
            )
        if tensor.HasField("raw_data") and tensor.ByteSize() < needed:
            raise ModelError(
                f"is damaged: weight {tensor.name!r} holds less than the {needed} bytes of its dimensions; export or download it again"
            )


@cache
def _schema(operator: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None


def _wrong_with(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> str:
    if len(node.input) < schema.min_input:
        return f"{len(node.input)} inputs, the operator needs {schema.min_input}"
    if len(node.output) < schema.min_output:
        return f"{len(node.output)} outputs, the operator gives {schema.min_output}"
    for kind, names, parameters in (
        ("input", node.input, schema.inputs),
        ("output", node.output, schema.outputs),
    ):
        for slot, (name, parameter) in enumerate(zip(names, parameters, strict=False)):
            if not name and parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single:
                return f"no name for {kind} {slot} ({parameter.name}), which the operator needs"
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        wanted, got = (
            str(known.type).rpartition(".")[2] if known else "",
            onnx.AttributeProto.AttributeType.Name(attribute.type),
        )
        if wanted and got != wanted:
            return f"{attribute.name!r} as {got}, the operator takes {wanted}"
    return ""


def check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError for external data that is missing, truncated or outside the model's folder."""
    folder = path.parent.resolve()
    for tensor in external_tensors(model):
        try:
            info = ExternalDataInfo(tensor)
            file = (folder / info.location).resolve()
            size = file.stat().st_size if file.is_file() else None
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{path}: external data of tensor {tensor.name!r} cannot be found: {first_line(error)}; export the model again"
            ) from error
        if not file.is_relative_to(folder):
            raise ModelError(
                f"{path}: tensor {tensor.name!r} points to {info.location!r}, outside the model's folder; save the model with its data beside it"
            )
        if size is None:
            raise ModelError(
                f"{path}: external data file {info.location!r} of tensor {tensor.name!r} is missing; put it beside the model"
            )
        if size < (info.offset or 0) + (info.length or 0):
            raise ModelError(
                f"{path}: external data file {info.location!r} ends before tensor {tensor.name!r}; it is truncated; download or export it again"
            )
