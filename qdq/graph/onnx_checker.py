"""What onnx.checker says of a model, apart from its plugins and its external data."""

from __future__ import annotations

import re

import onnx
from onnx import ModelProto, TensorProto

from qdq.errors import ModelError
from qdq.graph.plugins import declare_plugins
from qdq.graph.source import Source, canonical_bytes, copy_with_initializers, external_tensors
from qdq.graph.tensor_sizes import count_value_bytes

#: The bytes of values above which the checker gets an empty tensor.
_LARGEST_CHECKED = 1 << 12

#: How the checker names the node of its complaint.
_CONTEXT = re.compile(r"Bad node spec for node\. Name: (.*) OpType: (\w+)")


def require_valid(source: Source) -> None:
    """Raise ModelError for a model that onnx.checker rejects, so that its copy could not be saved.

    Plugins are no reason: the checker does not know them.
    """
    # By the path of a file the checker finds external data.
    complaint = find_complaint(source.model)
    if complaint and source.path and source.external_files:
        complaint = _run_checker(str(source.path))
    if complaint:
        raise ModelError(
            f"{source.path or source.name}: onnx.checker rejects the model: {complaint}. "
            "Export it again so that onnx.checker passes it."
        )


def find_complaint(model: ModelProto) -> str:
    """Return the complaint of onnx.checker about a model, "" where it has none.

    It gets the model without the values of its weights, at which it does not look: the loader has
    compared them with their dimensions.
    """
    light_model = _without_values(model)
    if not _run_checker(canonical_bytes(light_model)):
        return ""
    checkable = _with_typed_outputs(declare_plugins(light_model))
    return _run_checker(canonical_bytes(checkable))


def _run_checker(content: bytes | str) -> str:
    """Return the complaint about a serialised model or about the file at a path."""
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


def _without_values(model: ModelProto) -> ModelProto:
    """Return a copy with empty tensors for the large initializers, and for external data."""

    def empty(tensor: TensorProto) -> TensorProto:
        if count_value_bytes(tensor) <= _LARGEST_CHECKED:
            return tensor
        return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0])

    copy = copy_with_initializers(model, empty)
    for tensor in external_tensors(copy):
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("dims")
        tensor.dims.append(0)
    return copy
