"""Cleanup around a conversion: computed constants are stored, and unused tensors are removed."""

from __future__ import annotations

from collections.abc import Collection

from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from qdq.graph.bodies import all_nodes
from qdq.graph.index import GraphIndex
from qdq.graph.pairs import PAIR_OPERATORS, count_readers
from qdq.graph.quantized_operators import DEQUANTIZE, MICROSOFT
from qdq.quantized.graph_writer import GraphWriter

#: Operators whose results need not, or cannot, be stored.
_NOT_STORED = (*PAIR_OPERATORS, "Constant", "DynamicQuantizeLinear")


def store_constants(graph: GraphWriter) -> None:
    """Store the scales, zero points and integers of pairs that nodes compute from constants."""
    computed = _find_computed_operands(graph)
    if not computed:
        return
    index = GraphIndex(graph.model.source)
    outputs = {output.name for output in graph.graph.output}
    for name, node in computed.items():
        is_only_result = len(node.output) == 1
        if not is_only_result or name not in index.constants or name in outputs:
            continue
        tensor = numpy_helper.from_array(index.constant(name), name)
        graph.stored[name] = tensor
        graph.model.initializers.append(tensor)
        graph.folded_results.add(name)
        graph.record(node, "computes a constant of a pair; its value is stored")


def _find_computed_operands(graph: GraphWriter) -> dict[str, NodeProto]:
    """Return the scales, zero points and integers of pairs that nodes compute, with those nodes."""
    operands: list[str] = []
    for node in graph.graph.node:
        if node.op_type in PAIR_OPERATORS:
            operands.extend(node.input[1:3])
        if node.op_type == DEQUANTIZE:
            operands.extend(node.input[:1])
    computed: dict[str, NodeProto] = {}
    for name in operands:
        producer = graph.producers.get(name)
        if producer is not None and producer.op_type not in _NOT_STORED:
            computed[name] = producer
    return computed


def remove_unused(model: ModelProto, used_before: Collection[str]) -> None:
    """Remove nodes, initializers and an operator domain that only converted nodes used.

    `used_before` names the tensors that were read before the conversion.
    """
    while _remove_dead_nodes(model.graph, used_before):
        pass
    _remove_dead_initializers(model.graph, used_before)
    _remove_unused_domain(model)


def _remove_dead_nodes(graph: GraphProto, used_before: Collection[str]) -> bool:
    """Remove nodes that are not read any longer; return whether there were any."""
    readers = count_readers(graph)
    dead: list[int] = []
    for position, node in enumerate(graph.node):
        was_used = any(name in used_before for name in node.output)
        is_used = any(readers[name] for name in node.output)
        if was_used and not is_used:
            dead.append(position)
    for position in reversed(dead):
        del graph.node[position]
    return bool(dead)


def _remove_dead_initializers(graph: GraphProto, used_before: Collection[str]) -> None:
    readers = count_readers(graph)
    dead: set[str] = set()
    for tensor in graph.initializer:
        if tensor.name in used_before and not readers[tensor.name]:
            dead.add(tensor.name)
    for field in (graph.initializer, graph.input):
        for position in reversed(range(len(field))):
            if field[position].name in dead:
                del field[position]


def _remove_unused_domain(model: ModelProto) -> None:
    """Remove the import of ONNX Runtime's operators if no node is of that domain."""
    if any(node.domain == MICROSOFT for _, node in all_nodes(model.graph)):
        return
    for position in reversed(range(len(model.opset_import))):
        if model.opset_import[position].domain == MICROSOFT:
            del model.opset_import[position]
