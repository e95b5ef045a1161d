"""Types and shapes of a graph's tensors by ONNX's shape inference, on a copy without the large weights."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

#: Tensors up to this many bytes stay in the copy that shapes are inferred on: reshape targets and the like.
LARGEST_FOLDED_BYTES = 4096


def infer_types(
    model: onnx.ModelProto, given: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]
) -> onnx.GraphProto:
    """Return a graph of a model with inferred types, on a copy whose large weights are replaced by their types and whose inputs have some shapes."""
    skeleton = onnx.ModelProto(
        ir_version=max(model.ir_version, 4),
        opset_import=model.opset_import,
        functions=model.functions,
    )
    graph = skeleton.graph
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(given, field))
    for value in graph.input:
        for dim, size in zip(
            value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False
        ):
            dim.dim_value = size
    listed = {i.name for i in given.input}
    for tensor in given.initializer:
        if len(tensor.raw_data) <= LARGEST_FOLDED_BYTES and not tensor.external_data:
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    told = onnx.ModelProto()
    told.CopyFrom(skeleton)
    del skeleton.graph.value_info[:]
    for tried in (
        told,
        skeleton,
    ):  # what an exporter or another quantizer says of tensors may contradict what the operators give
        try:
            return onnx.shape_inference.infer_shapes(tried, data_prop=True).graph
        except (ValueError, TypeError, RuntimeError, onnx.shape_inference.InferenceError):
            continue
    return told.graph


def declared_type(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | None, ...] | None]:
    """Return the element type and dimensions of a value, None for each unknown one."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in tensor.shape.dim
    )
