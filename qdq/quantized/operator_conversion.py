"""Quantized operators, such as QLinearConv, as float operators between DQ and Q."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from qdq.errors import ModelError
from qdq.graph.opset import default_opset
from qdq.graph.quantized_operators import (
    FloatForm,
    Operand,
    flattened_axis,
    float_attributes,
)
from qdq.quantized.graph_writer import GraphWriter, describe_node, input_name, remove_suffix
from qdq.quantized.qdq_conversion import append_quantize

#: The suffix that ONNX Runtime's quantizer appends to the name of a node.
_NODE_SUFFIX = "_quant"

#: The first opset in which the axes of ReduceMean are an input (ONNX operator changelog).
_REDUCE_AXES_OPSET = 18


def require_operands(node: NodeProto, float_form: FloatForm) -> None:
    """Raise ModelError for a quantized operator without its operands or its result.

    onnx.checker does not find these: it has no definitions of operators in other domains.
    """
    needed = 0
    for operand in float_form.operands:
        needed = max(needed, operand.tensor + 1, operand.scale + 1)
    inputs = len(node.input)
    if inputs < needed:
        raise ModelError(
            f"the file is damaged: {describe_node(node)} has {inputs} inputs and needs {needed}."
            " Export or download it again."
        )
    if not node.output or not node.output[0]:
        raise ModelError(
            f"the file is damaged: {describe_node(node)} has no output."
            " Export or download it again."
        )


def convert_operator(graph: GraphWriter, node: NodeProto, float_form: FloatForm) -> None:
    """Write a quantized operator as DequantizeLinear, a float operator and QuantizeLinear."""
    inputs = _dequantize_inputs(graph, node, float_form)
    graph.record(node, _describe_conversion(float_form))
    result = node.output[0]
    float_result = result
    if float_form.result:
        float_result = graph.unique_name(remove_suffix(result))
    addend = input_name(node, float_form.added)
    if addend:
        product = graph.unique_name(f"{float_result}_product")
        _write_float_operator(graph, node, float_form.op, inputs, product)
        graph.append_operator("Add", [product, addend], float_result)
    else:
        _write_float_operator(graph, node, float_form.op, inputs, float_result)
    if float_form.result:
        parameters = _result_parameters(graph, node, float_form.result)
        append_quantize(graph, float_result, parameters, result)


def _describe_conversion(float_form: FloatForm) -> str:
    if float_form.result:
        return f"becomes {float_form.op} between DequantizeLinear and QuantizeLinear"
    return f"becomes {float_form.op}"


def _dequantize_inputs(graph: GraphWriter, node: NodeProto, float_form: FloatForm) -> list[str]:
    """Return the inputs of the float operator."""
    inputs: list[str] = []
    if float_form.first is not None:
        inputs.append(input_name(node, float_form.first))
    for i, operand in enumerate(float_form.operands):
        axis = float_form.axis if i else None
        inputs.append(_dequantize_operand(graph, node, operand, axis))
    if input_name(node, float_form.bias):
        inputs.append(_dequantize_bias(graph, node, float_form))
    return inputs


def _dequantize_operand(
    graph: GraphWriter, node: NodeProto, operand: Operand, axis: int | None
) -> str:
    """Return the float operand of a quantized operator; `axis` is that of several scales."""
    tensor = node.input[operand.tensor]
    if tensor in graph.dynamic_inputs:
        return graph.dynamic_inputs[tensor]
    scale = input_name(node, operand.scale)
    zero_point = input_name(node, operand.zero_point)
    return graph.dequantize_operand(tensor, scale, zero_point, axis)


def _dequantize_bias(graph: GraphWriter, node: NodeProto, float_form: FloatForm) -> str:
    """Return an INT32 bias in floats.

    Its scale is that of the data times that of the weight (ONNX operator QLinearConv).
    """
    bias = input_name(node, float_form.bias)
    data, weight = float_form.operands
    data_scale = input_name(node, data.scale)
    weight_scale = input_name(node, weight.scale)
    if not graph.has_stored(bias, data_scale, weight_scale):
        raise ModelError(
            f"{describe_node(node)} computes its bias or a scale, which no pair can."
            " Quantize the float model it was made from."
        )
    data_scales = graph.read_values(data_scale).reshape(-1)
    weight_scales = graph.read_values(weight_scale).reshape(-1)
    integers = graph.read_values(bias)
    _check_bias_scales(node, integers.size, data_scales.size, weight_scales.size)
    scales = data_scales.astype(np.float64) * weight_scales.astype(np.float64)
    exact = integers * scales
    dtype = data_scales.dtype
    if not (np.abs(exact) <= np.finfo(dtype).max).all():
        raise ModelError(
            f"{describe_node(node)} has a bias that its scales make infinite or NaN."
            " Export the model again."
        )
    return graph.store(exact.astype(dtype), remove_suffix(bias))


def _check_bias_scales(node: NodeProto, values: int, data_scales: int, weight_scales: int) -> None:
    """Raise ModelError unless there is one scale of each operand, or one per value of the bias."""
    if not {data_scales, weight_scales} <= {1, values}:
        raise ModelError(
            f"{describe_node(node)} has {data_scales} and {weight_scales} scales"
            f" for a bias of {values} values. Export the model again."
        )


def _result_parameters(graph: GraphWriter, node: NodeProto, slots: tuple[int, int]) -> list[str]:
    """Return the scale and zero point of a quantized operator's result, as scalars."""
    scale_slot, zero_point_slot = slots
    scale = graph.store_scalar(input_name(node, scale_slot))
    zero_point = graph.store_scalar(input_name(node, zero_point_slot))
    return [scale, zero_point] if zero_point else [scale]


def _write_float_operator(
    graph: GraphWriter, node: NodeProto, op: str, inputs: list[str], result: str
) -> None:
    name = remove_suffix(node.name, _NODE_SUFFIX)
    float_node = helper.make_node(op, inputs, [result], name=name)
    axis = flattened_axis(node)
    if axis is not None:
        _write_flattened(graph, float_node, axis)
        return
    float_node.attribute.extend(float_attributes(node))
    if default_opset(graph.model.source.model) >= _REDUCE_AXES_OPSET:
        _store_axes(graph, float_node)
    graph.append(float_node)


def _write_flattened(graph: GraphWriter, softmax: NodeProto, axis: int) -> None:
    """Write a Softmax over all axes from `axis` on, as before opset 13."""
    inputs = list(softmax.input)
    result = softmax.output[0]
    flat = graph.add("Flatten", inputs, f"{result}_flat", axis=axis)
    flat_result = graph.unique_name(f"{result}_softmax")
    softmax.input[0] = flat
    softmax.output[0] = flat_result
    graph.append(softmax)
    shape = graph.add("Shape", inputs, f"{result}_shape")
    graph.append_operator("Reshape", [flat_result, shape], result)


def _store_axes(graph: GraphWriter, node: NodeProto) -> None:
    """Replace the attribute `axes` of a node by an input."""
    for attribute in node.attribute:
        if attribute.name == "axes":
            axes = np.array(attribute.ints, np.int64)
            result = node.output[0]
            node.input.append(graph.store(axes, f"{result}_axes"))
            node.attribute.remove(attribute)
            return
