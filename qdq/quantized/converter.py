"""A quantized model of any form, converted to plain Q/DQ pairs for the stages downstream.

Quantized operators become float ones between DequantizeLinear and QuantizeLinear. Operators on the
integers between a Q and its DQ move after the DQ. Nodes are added where a pair clips, or where its
scales differ. Both models compute the same by ONNX's semantics, up to the rounding of integer
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from onnx import GraphProto, ModelProto, NodeProto

from qdq.errors import ModelError
from qdq.graph.bodies import all_nodes, node_bodies
from qdq.graph.loader import raise_source_opset
from qdq.graph.pairs import PAIR_OPERATORS, count_readers
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import (
    DEQUANTIZE,
    INTEGER_PRODUCTS,
    QUANTIZE,
    FloatForm,
    find_float_form,
    is_quantized_operator,
    is_tensorrt_operator,
)
from qdq.graph.row_products import find_row_products, remove_row_products
from qdq.graph.source import Source
from qdq.quantized.graph_cleanup import remove_unused, store_constants
from qdq.quantized.graph_writer import (
    ConvertedNode,
    GraphWriter,
    IntegerFormat,
    ModelWriter,
    copy_node,
    input_name,
)
from qdq.quantized.integer_conversion import convert_dynamic_product, convert_integer_product
from qdq.quantized.operator_conversion import convert_operator, require_operands
from qdq.quantized.passthrough_conversion import SCALE_KEEPING_SLOTS, convert_passthrough
from qdq.quantized.plain_pairs import holds_plain_pairs_alone
from qdq.quantized.qdq_conversion import read_integer_format, write_dequantize, write_quantize
from qdq.quantizer import required_opset


def convert_to_qdq(
    source: Source, graph: QdqGraph | None = None
) -> tuple[Source, tuple[ConvertedNode, ...]]:
    """Return a model whose quantization is all in plain pairs, and its converted nodes.

    A model of plain pairs is returned itself. A quantized operator that no pairs can represent
    stays as it is; `find_unconverted` names those. `graph` is the main graph where it was read
    before.
    Raises ModelError for an operator whose attributes, scales or bias have no float equivalent.
    """
    graph = graph or QdqGraph(source.model.graph, source.location)
    if find_row_products(graph):
        source = _without_row_products(source)
        graph = QdqGraph(source.model.graph, source.location)
    return (source, ()) if holds_plain_pairs_alone(graph) else convert_graphs(source)


def convert_graphs(source: Source) -> tuple[Source, tuple[ConvertedNode, ...]]:
    """Return a model and its converted nodes, after a look at every node; the source for none."""
    writer = ModelWriter(source)
    try:
        graph = GraphWriter(writer, source.model.graph)
        store_constants(graph)
        nodes = _convert_nodes(graph)
    except ModelError as error:
        if str(error).startswith(f"{source.name}: "):  # of a constant that cannot be read
            raise
        raise ModelError(f"{source.path or source.name}: {error}") from error
    if not writer.converted:
        return source, ()
    model = _build_model(writer, nodes)
    converted = msgspec.structs.replace(source, model=model, stamp=None)
    return raise_source_opset(converted, _required_opset(graph), "FP8"), tuple(writer.converted)


def _without_row_products(source: Source) -> Source:
    """Return a source whose products are as they were before `write_row_products`."""
    model = ModelProto()
    model.CopyFrom(source.model)
    remove_row_products(model)
    return msgspec.structs.replace(source, model=model, stamp=None)


def _build_model(writer: ModelWriter, nodes: list[NodeProto]) -> ModelProto:
    """Return the converted copy of a model."""
    original = writer.source.model
    model = ModelProto()
    model.CopyFrom(original)
    _replace_nodes(model.graph, nodes)
    model.graph.initializer.extend(writer.initializers)
    remove_unused(model, set(count_readers(original.graph)))
    return model


def _required_opset(graph: GraphWriter) -> int:
    """Return the first opset that has Q/DQ of all integer types of a graph."""
    opset = 0
    for integer_format in graph.quantized.values():
        zero_point = graph.stored.get(integer_format.zero_point)
        if zero_point is not None:
            opset = max(opset, required_opset(zero_point.data_type))
    return opset


def find_unconverted(model: ModelProto) -> tuple[str, ...]:
    """Return the quantized nodes of a model and its bodies that are not plain pairs.

    Each is the node's label with its operator.
    """
    unconverted: list[str] = []
    for label, node in all_nodes(model.graph):
        if is_quantized_operator(node) or is_tensorrt_operator(node):
            unconverted.append(f"{label} ({node.op_type})")
    return tuple(unconverted)


def _convert_nodes(graph: GraphWriter) -> list[NodeProto]:
    """Return the converted nodes of a graph; unchanged nodes are not copied."""
    graph.quantized.update(_find_stored_formats(graph))
    for node in graph.graph.node:
        if graph.folded_results.isdisjoint(node.output):
            _convert_node(graph, _convert_bodies(graph, node))
    return graph.nodes


def _find_stored_formats(graph: GraphWriter) -> dict[str, IntegerFormat]:
    """Return the formats of stored integers.

    The DQ or quantized operator that reads them specifies the format, also through operators that
    keep the scale.
    """
    formats: dict[str, IntegerFormat] = {}
    for node in reversed(graph.graph.node):
        float_form = find_float_form(node)
        _require_scale(node)
        if node.op_type == DEQUANTIZE:
            formats[node.input[0]] = read_integer_format(node)
        elif float_form is not None:
            require_operands(node, float_form)
            formats.update(_operand_formats(node, float_form))
        elif node.op_type in SCALE_KEEPING_SLOTS and node.output[0] in formats:
            formats[node.input[0]] = formats[node.output[0]]
    stored: dict[str, IntegerFormat] = {}
    for name, integer_format in formats.items():
        if name in graph.stored and graph.levels(integer_format) is not None:
            stored[name] = integer_format
    return stored


def _require_scale(node: NodeProto) -> None:
    """Raise ModelError for a Q or DQ without a scale."""
    has_scale = len(node.input) > 1
    if node.op_type in PAIR_OPERATORS and not has_scale:
        raise ModelError(
            f"the file is damaged: node {node.name!r} ({node.op_type}) has no scale."
            " Export or download it again."
        )


def _operand_formats(node: NodeProto, float_form: FloatForm) -> dict[str, IntegerFormat]:
    """Return the formats of the operands of a quantized operator by tensor."""
    formats: dict[str, IntegerFormat] = {}
    for operand in float_form.operands:
        scale = input_name(node, operand.scale)
        zero_point = input_name(node, operand.zero_point)
        formats[node.input[operand.tensor]] = IntegerFormat(scale, zero_point)
    return formats


def _convert_bodies(graph: GraphWriter, node: NodeProto) -> NodeProto:
    """Return a node with its bodies converted; the node itself where they do not change."""
    converted_before = len(graph.model.converted)
    converted_bodies: list[list[NodeProto]] = []
    for _, body in node_bodies(node):
        converted_bodies.append(_convert_nodes(GraphWriter(graph.model, body, graph)))
    if len(graph.model.converted) == converted_before:
        return node
    copy = copy_node(node)
    for (_, body), nodes in zip(node_bodies(copy), converted_bodies, strict=True):
        _replace_nodes(body, nodes)
    return copy


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    kept = GraphProto()  # holds copies: some of the nodes belong to the graph
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def _convert_node(graph: GraphWriter, node: NodeProto) -> None:
    conversion = _CONVERSIONS.get(node.op_type)
    float_form = find_float_form(node)
    if conversion is not None:
        conversion(graph, node)
    elif float_form is not None:
        convert_operator(graph, node, float_form)
    elif any(name in graph.quantized for name in node.input):
        convert_passthrough(graph, node)
    else:
        graph.append(node)


def _write_dynamic_quantize(graph: GraphWriter, node: NodeProto) -> None:
    """Write a DynamicQuantizeLinear, for the float products that may replace its readers."""
    if len(node.output) > 1:  # a damaged one may lack its scale
        result, scale = node.output[0], node.output[1]
        graph.dynamic_inputs[result] = node.input[0]
        graph.dynamic_scales[scale] = result
    graph.append(node)


_CONVERSIONS: dict[str, Callable[[GraphWriter, NodeProto], None]] = {
    QUANTIZE: write_quantize,
    DEQUANTIZE: write_dequantize,
    "DynamicQuantizeLinear": _write_dynamic_quantize,
    "DynamicQuantizeMatMul": convert_dynamic_product,
    **dict.fromkeys(INTEGER_PRODUCTS, convert_integer_product),
}
