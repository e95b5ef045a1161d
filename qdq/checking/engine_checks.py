"""Findings that only a compiled engine shows: layers and kernels that differ from the pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qdq.checking.finding import Finding, make_finding
from qdq.checking.problem import NOTE
from qdq.engines.engine import Engine
from qdq.engines.rtx_compiler import Compiler
from qdq.graph.index import Edge
from qdq.graph.source import ModelLike, Source
from qdq.quantized.model import QuantizedModel
from qdq.target import Target
from qdq.validation.engine_report import compare_engines


def check_engines(
    model: ModelLike,
    targets: Iterable[Target],
    compiler: Compiler,
    known_findings: Iterable[Finding] = (),
) -> Iterator[Finding]:
    """Yield the differences between a model's pairs and its engine for each rtx target.

    Nodes that an error or warning in `known_findings` is about are left out. The engines are built
    without a GPU, with dynamic dimensions of 1. A model that has no plain pairs is only built.
    Raises CompilerError where TensorRT-RTX is missing.
    """
    quantized = QuantizedModel(model)
    explained = {finding.node for finding in known_findings if finding.severity != NOTE}
    for target in targets:
        for finding in _check_target(quantized, target, compiler):
            if finding.code == "engine-refuses" or finding.node not in explained:
                yield finding


def _check_target(
    quantized: QuantizedModel, target: Target, compiler: Compiler
) -> Iterator[Finding]:
    original = quantized.original
    has_plain_pairs = original is quantized.source
    source = original
    if has_plain_pairs:
        source = Source(original.path, quantized.labelled(), original.digest)
    engine = compiler.build(source, target)
    if engine.failure:
        node = engine.refused_nodes[0] if engine.refused_nodes else ""
        yield make_finding("engine-refuses", node, f"{target}: {engine.failure}")
    # A converted model has other layers than the file.
    if has_plain_pairs and not engine.failure:
        yield from _check_layers(quantized, target, engine)


def _check_layers(quantized: QuantizedModel, target: Target, engine: Engine) -> Iterator[Finding]:
    report = compare_engines(quantized, engine, engine, "compiled")
    for broken in report.broken_promises:
        problem = f"{target}: the pairs promise {broken.expected_type}, {broken.actual}"
        yield make_finding("engine-float", broken.node, problem, broken.rule)
    edges = _edges_by_label(quantized)
    locations = dict.fromkeys(edges.get(node, node) for node in report.standalone_qdq)
    for location in locations:
        problem = f"{target}: the pair, or half of it, is a separate kernel"
        yield make_finding("engine-kernel", location, problem)


def _edges_by_label(quantized: QuantizedModel) -> dict[str, Edge]:
    """Return the first edge of the pair of each Q and DQ in the main graph, by the node's label."""
    labels = [node.name for node in quantized.labelled().graph.node]
    edges: dict[str, Edge] = {}
    for quantized_edge in quantized.edges:
        if quantized_edge.edge.graph:
            continue
        pair = quantized_edge.pair
        for position in (pair.q, pair.dq):
            if position is not None:
                edges.setdefault(labels[position], quantized_edge.edge)
    return edges
