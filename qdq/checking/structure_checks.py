"""Findings about the arrangement of Q and DQ nodes: lone halves, double pairs, paired outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

from qdq.checking.finding import Finding, make_finding
from qdq.checking.pair_halves import paired_positions
from qdq.graph.bodies import node_bodies, node_labels, qualified_name
from qdq.graph.operators import FUSED_BEFORE_OUTPUT, WEIGHTED
from qdq.graph.pairs import PAIR_OPERATORS, QdqPair, count_readers, find_pairs, stored_tensors
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.quantized.model import QuantizedModel


def check_structure(quantized: QuantizedModel) -> Iterator[Finding]:
    """Yield the findings of the main graph and its bodies, in the order of the nodes."""
    yield from _check_graph(quantized.source.model.graph, (), "")


def _check_graph(
    graph: onnx.GraphProto, outer_constants: Collection[str], path: str
) -> Iterator[Finding]:
    """Yield the findings of a graph and its bodies; `path` is "" for the main graph."""
    labels = [qualified_name(path, label) for label in node_labels(graph)]
    pairs = find_pairs(graph, outer_constants)
    yield from _check_lone_halves(graph, labels, paired_positions(pairs))
    yield from _check_double_pairs(labels, pairs)
    if not path:
        yield from _check_graph_outputs(graph, labels, pairs)
    constants = {*stored_tensors(graph), *outer_constants}
    for label, node in zip(labels, graph.node, strict=True):
        for name, body in node_bodies(node):
            yield from _check_graph(body, constants, f"{label}.{name}")


def _check_lone_halves(
    graph: onnx.GraphProto, labels: list[str], paired: set[int]
) -> Iterator[Finding]:
    """Yield the Q and DQ nodes without their other half.

    Those of INT8 graph inputs and outputs are complete without it.
    """
    inputs = {value.name for value in graph.input}
    outputs = {value.name for value in graph.output}
    readers = count_readers(graph)
    for position, node in enumerate(graph.node):
        if node.op_type not in PAIR_OPERATORS or position in paired or not node.output:
            continue
        source, result = node.input[0], node.output[0]
        if node.op_type == QUANTIZE and result not in outputs:
            reader = "no DequantizeLinear" if readers[result] else "nothing"
            problem = f"{reader} reads this QuantizeLinear"
            yield make_finding("lone-quantize", labels[position], problem)
        if node.op_type == DEQUANTIZE and source not in inputs:
            problem = f"the node reads {source!r}, which no QuantizeLinear produces"
            yield make_finding("lone-dequantize", labels[position], problem)


def _check_double_pairs(labels: list[str], pairs: tuple[QdqPair, ...]) -> Iterator[Finding]:
    dequantized = {pair.output: labels[pair.dq] for pair in pairs}
    for pair in pairs:
        if pair.q is not None and pair.tensor in dequantized:
            dequantizer = dequantized[pair.tensor]
            problem = (
                f"the pair quantizes {pair.tensor!r}, which {dequantizer} has just dequantized"
            )
            yield make_finding("duplicate-pair", labels[pair.dq], problem)


def _check_graph_outputs(
    graph: onnx.GraphProto, labels: list[str], pairs: tuple[QdqPair, ...]
) -> Iterator[Finding]:
    """Yield the pairs whose result is a graph output: no edge reads it, so no plan contains it."""
    producers = {name: node for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    for pair in pairs:
        if pair.output not in outputs or pair.q is None or pair.tensor not in producers:
            continue
        producer = _skip_fused_operators(producers, producers[pair.tensor])
        problem = f"the graph output {pair.output!r} has a Q/DQ pair"
        code = "unwanted-pair"
        if producer.op_type in WEIGHTED:
            problem += f" after the {producer.op_type} {producer.name!r}"
            code = "pair-on-output"
        yield make_finding(code, labels[pair.dq], problem)


def _skip_fused_operators(
    producers: dict[str, onnx.NodeProto], producer: onnx.NodeProto
) -> onnx.NodeProto:
    """Return the first producer upstream that is not fused into the layer before it."""
    while producer.op_type in FUSED_BEFORE_OUTPUT and producer.input[0] in producers:
        producer = producers[producer.input[0]]
    return producer
