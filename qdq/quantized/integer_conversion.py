"""Products of integers, MatMulInteger and ConvInteger, and DynamicQuantizeMatMul as float products.

ONNX Runtime's dynamic quantizer writes MatMulInteger -> Cast -> Mul, whose factor is the product of
both scales. That chain becomes one float product of the two dequantized operands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import NodeProto, helper

from qdq.arrays import Array
from qdq.graph.quantized_operators import INTEGER_PRODUCTS
from qdq.quantized.graph_writer import GraphWriter, IntegerFormat, input_name, remove_suffix

_NODE_SUFFIXES = ("_quant", "_quantized")


class _Chain(NamedTuple):
    """The Cast after an integer product and the Mul that scales it."""

    cast: NodeProto
    scaling: NodeProto
    #: Name of the factor.
    factor: str


def convert_integer_product(graph: GraphWriter, node: NodeProto) -> None:
    """Write an integer product and the nodes that scale it as a float product.

    A product stays as it is if the scales of its operands are unknown.
    """
    chain = _find_chain(graph, node)
    operands = _dequantize_operands(graph, node, chain.factor) if chain else None
    if chain is None or operands is None:
        graph.append(node)
        return
    op = INTEGER_PRODUCTS[node.op_type]
    result = chain.scaling.output[0]
    graph.folded_results.update((chain.cast.output[0], result))
    graph.model.record(node, f"becomes {op}, whose operands take the scales of the nodes after it")
    product = helper.make_node(op, operands, [result], name=_product_name(node))
    product.attribute.extend(node.attribute)
    graph.append(product)


def convert_dynamic_product(graph: GraphWriter, node: NodeProto) -> None:
    """Write a DynamicQuantizeMatMul as a float product, and its bias as an Add."""
    data, weight, scale = node.input[:3]
    zero_point = input_name(node, 3)
    bias = input_name(node, 4)
    float_weight = _dequantize_stored(graph, weight, scale, zero_point, is_last_axis=True)
    result = node.output[0]
    product = graph.model.unique_name(f"{result}_product") if bias else result
    graph.model.record(node, "becomes MatMul; its weight keeps its scales")
    inputs = [data, float_weight]
    graph.append(helper.make_node("MatMul", inputs, [product], name=_product_name(node)))
    if bias:
        graph.append_operator("Add", [product, bias], result)


def _product_name(node: NodeProto) -> str:
    name: str = node.name
    for suffix in _NODE_SUFFIXES:
        name = remove_suffix(name, suffix)
    return name


def _find_chain(graph: GraphWriter, node: NodeProto) -> _Chain | None:
    cast = _find_sole_consumer(graph, node.output[0])
    if cast is None or cast.op_type != "Cast":
        return None
    scaling = _find_sole_consumer(graph, cast.output[0])
    if scaling is None or scaling.op_type != "Mul":
        return None
    factors = [name for name in scaling.input if name != cast.output[0]]
    return _Chain(cast, scaling, factors[0] if factors else "")


def _find_sole_consumer(graph: GraphWriter, tensor: str) -> NodeProto | None:
    """Return the only reader of a tensor; None if there are several or it is a graph output."""
    consumers = graph.consumers.get(tensor, [])
    is_output = any(tensor == output.name for output in graph.graph.output)
    return consumers[0] if len(consumers) == 1 and not is_output else None


def _dequantize_operands(graph: GraphWriter, node: NodeProto, factor: str) -> list[str] | None:
    """Return both operands in floats; None where the factor does not give their scales."""
    scales = _find_scales(graph, node, factor)
    if scales is None:
        return None
    zero_points = (input_name(node, 2), input_name(node, 3))
    is_last_axis = node.op_type != "ConvInteger"
    operands: list[str] = []
    for tensor, scale, zero_point in zip(node.input[:2], scales, zero_points, strict=True):
        if tensor in graph.dynamic_inputs:
            operands.append(graph.dynamic_inputs[tensor])
        elif tensor in graph.quantized:
            operands.append(graph.dequantize(tensor, graph.quantized[tensor]))
        else:
            operands.append(_dequantize_stored(graph, tensor, scale, zero_point, is_last_axis))
    return operands


def _find_scales(graph: GraphWriter, node: NodeProto, factor: str) -> tuple[str, str] | None:
    """Return the names of both operands' scales, whose product is the factor."""
    data, weight = node.input[:2]
    data_scale = _find_scale(graph, data)
    weight_scale = _find_scale(graph, weight)
    product = graph.producers.get(factor)
    if product is not None and product.op_type == "Mul":
        return _match_factors(product, data_scale, weight_scale)
    if not data_scale or data_scale not in graph.stored or factor not in graph.stored:
        return None
    quotient = _divide(graph.read_values(factor), graph.read_values(data_scale))
    return data_scale, graph.store(quotient, f"{weight}_scale")


def _match_factors(
    product: NodeProto, data_scale: str | None, weight_scale: str | None
) -> tuple[str, str] | None:
    """Return the factors of a Mul as the scales of data and weight; None if they do not match.

    At least one of the scales must be known.
    """
    if not data_scale and not weight_scale:
        return None
    first, second = product.input
    if second == data_scale or first == weight_scale:
        first, second = second, first
    is_match = data_scale in (None, first) and weight_scale in (None, second)
    return (first, second) if is_match else None


def _divide(factor: Array, scale: Array) -> Array:
    """Return a factor over one of its two scales: a vector in FP32, or a scalar of one number."""
    quotient = factor.astype(np.float64) / scale.astype(np.float64)
    shape = (-1,) if quotient.size > 1 else ()
    return quotient.reshape(shape).astype(np.float32)


def _find_scale(graph: GraphWriter, tensor: str) -> str | None:
    """Return the scale of an integer tensor, None where it is unknown."""
    if tensor in graph.quantized:
        return graph.quantized[tensor].scale
    for scale, quantized in graph.dynamic_scales.items():
        if quantized == tensor:
            return scale
    return None


def _dequantize_stored(
    graph: GraphWriter, tensor: str, scale: str, zero_point: str, is_last_axis: bool
) -> str:
    """Return a stored operand in floats; several scales are along its last axis, or its first."""
    if not graph.has_several_values(scale):
        scalars = IntegerFormat(graph.store_scalar(scale), graph.store_scalar(zero_point))
        return graph.dequantize(tensor, scalars)
    is_stored = tensor in graph.stored
    axis = len(graph.stored[tensor].dims) - 1 if is_last_axis and is_stored else 0
    return graph.dequantize(tensor, IntegerFormat(scale, zero_point, axis))
