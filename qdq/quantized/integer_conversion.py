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
from qdq.quantized.graph_writer import LAST_AXIS, GraphWriter, input_name, remove_suffix

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
    scales = None if chain is None else _find_scales(graph, node, chain.factor)
    if chain is None or scales is None:
        graph.append(node)
        return
    operands = _dequantize_operands(graph, node, scales)
    graph.folded_results.add(chain.cast.output[0])
    result = chain.scaling.output[0]
    graph.folded_results.add(result)
    op = INTEGER_PRODUCTS[node.op_type]
    graph.record(node, f"becomes {op}, whose operands take the scales of the nodes after it")
    name = _product_name(node)
    product = helper.make_node(op, operands, [result], name=name)
    product.attribute.extend(node.attribute)
    graph.append(product)


def convert_dynamic_product(graph: GraphWriter, node: NodeProto) -> None:
    """Write a DynamicQuantizeMatMul as a float product, and its bias as an Add."""
    data, weight, scale = node.input[:3]
    zero_point = input_name(node, 3)
    float_weight = _dequantize_stored(graph, weight, scale, zero_point, LAST_AXIS)
    bias = input_name(node, 4)
    result = node.output[0]
    product = result
    if bias:
        product = graph.unique_name(f"{result}_product")
    graph.record(node, "becomes MatMul; its weight keeps its scales")
    inputs = [data, float_weight]
    name = _product_name(node)
    graph.append(helper.make_node("MatMul", inputs, [product], name=name))
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
    product = cast.output[0]
    scaling = _find_sole_consumer(graph, product)
    if scaling is None or scaling.op_type != "Mul":
        return None
    factor = next((name for name in scaling.input if name != product), "")
    return _Chain(cast, scaling, factor)


def _find_sole_consumer(graph: GraphWriter, tensor: str) -> NodeProto | None:
    """Return the only reader of a tensor; None if there are several or it is a graph output."""
    consumers = graph.consumers.get(tensor, [])
    if len(consumers) != 1:
        return None
    for output in graph.graph.output:
        if output.name == tensor:
            return None
    return consumers[0]


def _dequantize_operands(graph: GraphWriter, node: NodeProto, scales: tuple[str, str]) -> list[str]:
    """Return both operands in floats, those with unknown formats by the given scales."""
    axis = 0 if node.op_type == "ConvInteger" else LAST_AXIS
    operands: list[str] = []
    for slot, scale in enumerate(scales):
        tensor = node.input[slot]
        zero_point = input_name(node, slot + 2)
        if tensor in graph.dynamic_inputs:
            operand = graph.dynamic_inputs[tensor]
        elif tensor in graph.quantized:
            operand = graph.dequantize(tensor, graph.quantized[tensor])
        else:
            operand = _dequantize_stored(graph, tensor, scale, zero_point, axis)
        operands.append(operand)
    return operands


def _find_scales(graph: GraphWriter, node: NodeProto, factor: str) -> tuple[str, str] | None:
    """Return the names of both operands' scales, whose product is the factor.

    None where the factor does not give them.
    """
    data, weight = node.input[:2]
    data_scale = _find_scale(graph, data)
    weight_scale = _find_scale(graph, weight)
    product = graph.producers.get(factor)
    if product is not None and product.op_type == "Mul":
        return _match_factors(product, data_scale, weight_scale)
    if not data_scale or not graph.has_stored(data_scale, factor):
        return None
    factors = graph.read_values(factor)
    quotient = _divide(factors, graph.read_values(data_scale))
    stored_scale = graph.store(quotient, f"{weight}_scale")
    return data_scale, stored_scale


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
    if data_scale not in (None, first) or weight_scale not in (None, second):
        return None
    return first, second


def _divide(factor: Array, scale: Array) -> Array:
    """Return a factor over one of its two scales: a vector in FP32, or a scalar of one number."""
    quotient = factor.astype(np.float64) / scale.astype(np.float64)
    if quotient.size > 1:
        return quotient.reshape(-1).astype(np.float32)
    return quotient.reshape(()).astype(np.float32)


def _find_scale(graph: GraphWriter, tensor: str) -> str | None:
    """Return the scale of an integer tensor, None where it is unknown."""
    if tensor in graph.quantized:
        return graph.quantized[tensor].scale
    for scale, quantized in graph.dynamic_scales.items():
        if quantized == tensor:
            return scale
    return None


def _dequantize_stored(
    graph: GraphWriter, tensor: str, scale: str, zero_point: str, axis: int
) -> str:
    """Return an operand in floats; several scales are along `axis`, or 0 of a computed tensor."""
    if tensor not in graph.stored:
        axis = 0
    return graph.dequantize_operand(tensor, scale, zero_point, axis)
