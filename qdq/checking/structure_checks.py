"""Findings about Q and DQ nodes that form no plain pair on an edge: lone halves, pairs behind pairs, pairs on graph outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

from qdq.checking.finding import Finding, make_finding
from qdq.graph.bodies import node_bodies, node_labels, qualified_name
from qdq.graph.operators import FUSED_BEFORE_OUTPUT, WEIGHTED
from qdq.graph.pairs import PAIR_OPERATORS, QdqPair, count_readers, find_pairs, stored_tensors
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.quantized.model import QuantizedModel


def check_structure(quantized: QuantizedModel) -> Iterator[Finding]:
    """Yield them in the order of the nodes, those in bodies too."""
    yield from _graph(quantized.source.model.graph, (), "")


def _graph(graph: onnx.GraphProto, around: Collection[str], path: str) -> Iterator[Finding]:
    labels, pairs = (
        [qualified_name(path, label) for label in node_labels(graph)],
        find_pairs(graph, around),
    )
    yield from _lone(graph, labels, {i for p in pairs for i in (p.q, p.dq) if i is not None})
    yield from _doubled(graph, labels, pairs)
    if not path:
        yield from _on_outputs(graph, labels, pairs)
    known = {*stored_tensors(graph), *around}
    for label, node in zip(labels, graph.node, strict=True):
        for name, body in node_bodies(node):
            yield from _graph(body, known, f"{label}.{name}")


def _lone(graph: onnx.GraphProto, labels: list[str], paired: set[int]) -> Iterator[Finding]:
    """Yield Q and DQ without their other half; INT8 inputs and outputs of the graph are whole without it."""
    inputs, outputs, read = (
        {i.name for i in graph.input},
        {o.name for o in graph.output},
        count_readers(graph),
    )
    for i, node in enumerate(graph.node):
        if node.op_type not in PAIR_OPERATORS or i in paired or not node.output:
            continue
        if node.op_type == QUANTIZE and node.output[0] not in outputs:
            yield make_finding(
                "lone-quantize",
                labels[i],
                "no DequantizeLinear reads it" if read[node.output[0]] else "nothing reads it",
            )
        if node.op_type == DEQUANTIZE and node.input[0] not in inputs:
            yield make_finding(
                "lone-dequantize",
                labels[i],
                f"reads {node.input[0]!r}, which no QuantizeLinear gives",
            )


def _doubled(
    graph: onnx.GraphProto, labels: list[str], pairs: tuple[QdqPair, ...]
) -> Iterator[Finding]:
    dequantized = {p.output: labels[p.dq] for p in pairs}
    for pair in pairs:
        if pair.q is not None and pair.tensor in dequantized:
            yield make_finding(
                "duplicate-pair",
                labels[pair.dq],
                f"quantizes {pair.tensor!r}, which {dequantized[pair.tensor]} has just dequantized",
            )


def _on_outputs(
    graph: onnx.GraphProto, labels: list[str], pairs: tuple[QdqPair, ...]
) -> Iterator[Finding]:
    """Yield pairs whose result is a graph output: no edge reads it, so that no plan has it."""
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {o.name for o in graph.output}
    for pair in pairs:
        if pair.output in outputs and pair.q is not None and pair.tensor in makers:
            maker = makers[pair.tensor]
            while maker.op_type in FUSED_BEFORE_OUTPUT and maker.input[0] in makers:
                maker = makers[maker.input[0]]
            weighted = maker.op_type in WEIGHTED
            problem = f"the graph output {pair.output!r} has a Q/DQ pair" + (
                f" behind the {maker.op_type} {maker.name!r}" if weighted else ""
            )
            yield make_finding(
                "pair-on-output" if weighted else "unwanted-pair", labels[pair.dq], problem
            )
