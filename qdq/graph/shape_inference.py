"""Types and shapes of tensors by ONNX's shape inference, without the large weights."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

from qdq.graph.bodies import list_names
from qdq.graph.plugins import list_missing_imports

#: Dimensions of a tensor, None for each unknown one.
Dims = tuple[int | None, ...]

#: Element type, 0 for unknown, and dimensions, None where even the rank is unknown.
TensorType = tuple[int, Dims | None]

#: Tensors up to this many bytes, such as reshape targets, take part in shape inference.
LARGEST_FOLDED_BYTES = 4096

_INFERENCE_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
)


def infer_types(
    model: ModelProto, graph: GraphProto, shapes: Mapping[str, tuple[int, ...]]
) -> GraphProto:
    """Return a copy of a graph of a model with inferred types.

    In the copy, large weights are replaced by inputs of their types, and `shapes` fixes the
    dimensions of some inputs.
    """
    skeleton = ModelProto(
        ir_version=max(model.ir_version, 4),
        opset_import=model.opset_import,
        functions=model.functions,
    )
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(skeleton.graph, field).extend(getattr(graph, field))
    _clear_negative_sizes(skeleton.graph)
    # at a domain without an import, inference returns no types at all
    skeleton.opset_import.extend(list_missing_imports(graph.node, model.opset_import))
    _set_input_shapes(skeleton.graph, shapes)
    _add_weights(skeleton.graph, graph)
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except _INFERENCE_ERRORS:
        return _infer_without_declared(skeleton)


def _infer_without_declared(skeleton: ModelProto) -> GraphProto:
    """Return a graph with types that are inferred from its inputs, else with those declared.

    Types that an exporter or another quantizer declared may contradict the operators' results.
    """
    declared = GraphProto(value_info=skeleton.graph.value_info)
    del skeleton.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except _INFERENCE_ERRORS:
        skeleton.graph.value_info.extend(declared.value_info)
        return skeleton.graph


def _clear_negative_sizes(graph: GraphProto) -> None:
    """Make negative sizes unknown, such as the -1 that some exporters declare.

    ONNX's inference ends the process at a Slice of such a tensor (an assertion of onnx 1.23).
    """
    for field in (graph.input, graph.output, graph.value_info):
        for value in field:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")


def _set_input_shapes(graph: GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size


def _add_weights(skeleton: GraphProto, graph: GraphProto) -> None:
    """Add the small initializers of a graph to its skeleton, and the large ones as inputs."""
    input_names = set(list_names(graph.input))
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= LARGEST_FOLDED_BYTES and not tensor.external_data:
            skeleton.initializer.append(tensor)
        elif tensor.name not in input_names:
            shape = list(tensor.dims)
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
            skeleton.input.append(value)


def declared_type(value: ValueInfoProto) -> TensorType:
    """Return the element type and dimensions of a value, None for each unknown one."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    dims: list[int | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(dim.dim_value)
        else:
            dims.append(None)
    return tensor.elem_type, tuple(dims)


def known_sizes(dims: Dims | None) -> tuple[int, ...] | None:
    """Return dimensions that are all known, None for others."""
    if dims is None or None in dims:
        return None
    return tuple(size for size in dims if size is not None)
