"""MatMulInteger and ConvInteger, whose scales lie in the nodes behind them, and products that quantize while they run, as float products.

ONNX Runtime's dynamic quantizer writes MatMulInteger -> Cast -> Mul, the factor being the product of both
scales; that chain becomes one float product of the two dequantized operands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from qdq.graph.quantized_operators import INTEGER_PRODUCTS
from qdq.quantized.graph_writer import GraphWriter, IntegerFormat, input_name, remove_suffix

_NODE_SUFFIXES = ("_quant", "_quantized")


class _Chain(NamedTuple):
    """An integer product, the Cast behind it and the Mul that scales it."""

    cast: onnx.NodeProto
    scaling: onnx.NodeProto
    #: Name of the factor.
    factor: str


def convert_integer_product(graph: GraphWriter, node: onnx.NodeProto) -> None:
    """Write an integer product and the nodes that scale it as a float product; one whose scales are not found stays as it is."""
    chain = _chain(graph, node)
    operands = _operands(graph, node, chain.factor) if chain else None
    if chain is None or operands is None:
        graph.append(node)
        return
    op = INTEGER_PRODUCTS[node.op_type]
    graph.folded |= {chain.cast.output[0], chain.scaling.output[0]}
    graph.model.note(node, f"becomes {op}, with the scales of the nodes behind it in its operands")
    product = helper.make_node(op, list(operands), [chain.scaling.output[0]], name=_name(node))
    product.attribute.extend(node.attribute)
    graph.append(product)


def convert_dynamic_product(graph: GraphWriter, node: onnx.NodeProto) -> None:
    """Write a DynamicQuantizeMatMul as the product of its float operand and its dequantized weight, and its bias as an Add."""
    weight = _dequantized(graph, node.input[1], node.input[2], input_name(node, 3), last=True)
    bias, result = input_name(node, 4), node.output[0]
    product = graph.model.fresh(f"{result}_product") if bias else result
    graph.model.note(node, "becomes MatMul; its weight keeps its scales")
    graph.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=_name(node)))
    if bias:
        graph.append(
            helper.make_node(
                "Add", [product, bias], [result], name=graph.model.fresh(f"{result}_Add")
            )
        )


def _name(node: onnx.NodeProto) -> str:
    name = node.name
    for suffix in _NODE_SUFFIXES:
        name = remove_suffix(name, suffix)
    return name


def _chain(graph: GraphWriter, node: onnx.NodeProto) -> _Chain | None:
    cast = _only_reader(graph, node.output[0])
    if cast is None or cast.op_type != "Cast":
        return None
    scaling = _only_reader(graph, cast.output[0])
    if scaling is None or scaling.op_type != "Mul":
        return None
    return _Chain(
        cast, scaling, next(name for name in [*scaling.input, ""] if name != cast.output[0])
    )


def _only_reader(graph: GraphWriter, tensor: str) -> onnx.NodeProto | None:
    found = graph.consumers.get(tensor, [])
    return (
        found[0] if len(found) == 1 and all(tensor != o.name for o in graph.graph.output) else None
    )


def _operands(graph: GraphWriter, node: onnx.NodeProto, factor: str) -> tuple[str, str] | None:
    """Return both operands in floats; None where the factor does not tell their scales."""
    data, weight = node.input[0], node.input[1]
    zeros = input_name(node, 2), input_name(node, 3)
    scales = _scales(graph, node, factor)
    if scales is None:
        return None
    last = node.op_type != "ConvInteger"
    found = []
    for tensor, scale, zero in zip((data, weight), scales, zeros, strict=True):
        if tensor in graph.dynamic:
            found.append(graph.dynamic[tensor])
        elif tensor in graph.quantized:
            found.append(graph.to_float(tensor, graph.quantized[tensor]))
        else:
            found.append(_dequantized(graph, tensor, scale, zero, last))
    return found[0], found[1]


def _scales(graph: GraphWriter, node: onnx.NodeProto, factor: str) -> tuple[str, str] | None:
    """Return the names of both scales whose product the factor is."""
    known = [_scale_of(graph, tensor) for tensor in node.input[:2]]
    product = graph.producers.get(factor)
    if product is not None and product.op_type == "Mul":
        scales = list(product.input)
        if scales[1] == known[0] or scales[0] == known[1]:
            scales.reverse()
        fits = all(k in (None, s) for k, s in zip(known, scales, strict=True)) and any(known)
        return (scales[0], scales[1]) if fits else None
    if known[0] and known[0] in graph.stored and factor in graph.stored:
        rest = graph.values(factor).astype(np.float64) / graph.values(known[0]).astype(np.float64)
        return known[0], graph.store(
            rest.reshape(-1).astype(np.float32)
            if rest.size > 1
            else rest.reshape(()).astype(np.float32),
            f"{node.input[1]}_scale",
        )
    return None


def _scale_of(graph: GraphWriter, tensor: str) -> str | None:
    if tensor in graph.quantized:
        return graph.quantized[tensor].scale
    return next(
        (scale for scale, dynamic in graph.dynamic_scales.items() if dynamic == tensor), None
    )


def _dequantized(graph: GraphWriter, tensor: str, scale: str, zero: str, last: bool) -> str:
    """Return a stored operand in floats; several scales lie along its last axis, or its first."""
    if not graph.holds_several(scale):
        return graph.to_float(tensor, IntegerFormat(graph.scalar(scale), graph.scalar(zero)))
    axis = len(graph.stored[tensor].dims) - 1 if last and tensor in graph.stored else 0
    return graph.to_float(tensor, IntegerFormat(scale, zero, axis))
