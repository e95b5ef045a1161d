"""What onnx.checker says of a model, apart from its plugins and its external data."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from qdq.errors import ModelError
from qdq.graph.plugins import declare_plugins
from qdq.graph.source import Source, canonical_bytes, external_tensors

#: How the checker names the node of its complaint.
_CONTEXT = re.compile(r"Bad node spec for node\. Name: (.*) OpType: (\w+)")


def require_valid(source: Source) -> None:
    """Raise ModelError for a model that onnx.checker rejects, so that its copy could not be saved.

    Plugins are no reason: the checker does not know them.
    """
    # The file first: it need not be serialised, and by its path the checker reads external data.
    serialised = source.path or canonical_bytes(source.model)
    complaint = find_complaint(source.model, serialised)
    if complaint:
        raise ModelError(
            f"{source.path or source.name}: onnx.checker rejects the model: {complaint}. "
            "Export it again so that onnx.checker passes it."
        )


def find_complaint(model: ModelProto, serialised: bytes | Path) -> str:
    """Return the complaint of onnx.checker about a model, "" where it has none.

    `serialised` is its content, or a file with the model before it was normalized. The model is
    serialised again only where the checker rejects that.
    """
    if not _run_checker(serialised):
        return ""
    checkable = _with_typed_outputs(_without_external_data(declare_plugins(model)))
    return _run_checker(canonical_bytes(checkable))


def _run_checker(serialised: bytes | Path) -> str:
    content = serialised if isinstance(serialised, bytes) else str(serialised)
    try:
        onnx.checker.check_model(content)
    except Exception as error:  # noqa: BLE001 it throws errors of other parts of ONNX, too
        return _describe_complaint(error)
    return ""


def _describe_complaint(error: Exception) -> str:
    text = str(error)
    # the complaint may go on in further lines, up to those about its place
    reason = " ".join(text.partition("==> Context")[0].split()).rstrip(".")
    node = _CONTEXT.search(text)
    if node is None:
        return reason
    name, operator = node.groups()
    return f"{reason} (node {name or 'without a name'}, {operator})"


def _with_typed_outputs(model: ModelProto) -> ModelProto:
    """Return a copy whose outputs all have a type and a shape, which ONNX Runtime needs not."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for output in copy.graph.output:
        if output.type.WhichOneof("value") in (None, "tensor_type"):
            tensor_type = output.type.tensor_type
            tensor_type.elem_type = tensor_type.elem_type or TensorProto.FLOAT
            tensor_type.shape.SetInParent()
    return copy


def _without_external_data(model: ModelProto) -> ModelProto:
    """Return a copy with empty tensors for those with external data, else the model itself."""
    if not any(True for _ in external_tensors(model)):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in external_tensors(copy):
        _empty_tensor(tensor)
    return copy


def _empty_tensor(tensor: TensorProto) -> None:
    if uses_external_data(tensor):
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("dims")
        tensor.dims.append(0)
