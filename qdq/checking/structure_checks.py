"""Findings about the arrangement of Q and DQ nodes: lone halves, double pairs, paired outputs."""

from __future__ import annotations

from collections.abc import Iterator

from qdq.checking.finding import Finding, make_finding
from qdq.checking.pair_halves import paired_positions
from qdq.graph.operators import FUSED_BEFORE_OUTPUT, WEIGHTED
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.quantized.model import QuantizedModel


def check_structure(quantized: QuantizedModel) -> Iterator[Finding]:
    """Yield the findings of the main graph and its bodies, in the order of the nodes."""
    yield from _check_graph(quantized.graph)


def _check_graph(graph: QdqGraph) -> Iterator[Finding]:
    """Yield the findings of a graph and its bodies."""
    yield from _check_lone_halves(graph)
    yield from _check_double_pairs(graph)
    if not graph.path:
        yield from _check_graph_outputs(graph)
    for body in graph.inner_graphs:
        yield from _check_graph(body)


def _check_lone_halves(graph: QdqGraph) -> Iterator[Finding]:
    """Yield the Q and DQ nodes without their other half.

    Those of INT8 graph inputs and outputs are complete without it.
    """
    paired = paired_positions(graph.pairs)
    for position in graph.half_positions:
        if position in paired or not graph.outputs[position]:
            continue
        operator = graph.operators[position]
        source, result = graph.inputs[position][0], graph.outputs[position][0]
        if operator == QUANTIZE and result not in graph.graph_outputs:
            reader = "no DequantizeLinear" if graph.readers[result] else "nothing"
            problem = f"{reader} reads this QuantizeLinear"
            yield make_finding("lone-quantize", graph.qualified_label(position), problem)
        if operator == DEQUANTIZE and source not in graph.graph_inputs:
            problem = f"the node reads {source!r}, which no QuantizeLinear produces"
            yield make_finding("lone-dequantize", graph.qualified_label(position), problem)


def _check_double_pairs(graph: QdqGraph) -> Iterator[Finding]:
    dequantized = {pair.output: pair.dq for pair in graph.pairs}
    for pair in graph.pairs:
        if pair.q is not None and pair.tensor in dequantized:
            dequantizer = graph.qualified_label(dequantized[pair.tensor])
            problem = (
                f"the pair quantizes {pair.tensor!r}, which {dequantizer} has just dequantized"
            )
            yield make_finding("duplicate-pair", graph.qualified_label(pair.dq), problem)


def _check_graph_outputs(graph: QdqGraph) -> Iterator[Finding]:
    """Yield the pairs whose result is a graph output: no edge reads it, so no plan contains it."""
    for pair in graph.pairs:
        if pair.output not in graph.graph_outputs or pair.q is None:
            continue
        if pair.tensor not in graph.producers:
            continue
        producer = _skip_fused_operators(graph, graph.producers[pair.tensor])
        problem = f"the graph output {pair.output!r} has a Q/DQ pair"
        code = "unwanted-pair"
        operator = graph.operators[producer]
        if operator in WEIGHTED:
            problem += f" after the {operator} {graph.nodes[producer].name!r}"
            code = "pair-on-output"
        yield make_finding(code, graph.qualified_label(pair.dq), problem)


def _skip_fused_operators(graph: QdqGraph, producer: int) -> int:
    """Return the position of the first producer upstream that is not fused into one before it."""
    while graph.operators[producer] in FUSED_BEFORE_OUTPUT:
        upstream = graph.producers.get(graph.inputs[producer][0])
        if upstream is None:
            break
        producer = upstream
    return producer
