"""Findings that only a compiler can tell: what TensorRT-RTX made of a model, against what its pairs ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qdq.checking.catalogue import NOTE
from qdq.checking.finding import Finding, make_finding
from qdq.engines.rtx_compiler import Compiler
from qdq.graph.index import Edge
from qdq.graph.source import ModelLike, Source
from qdq.quantized.model import QuantizedModel
from qdq.target import Target
from qdq.validation.engine_report import compare_engines


def check_engines(
    model: ModelLike, targets: Iterable[Target], compiler: Compiler, told: Iterable[Finding] = ()
) -> Iterator[Finding]:
    """Yield where the engine of each rtx target differs from what the pairs of a model ask for, but for nodes that `told` explains.

    The engines are built without a GPU, for dynamic dimensions of 1. A model that has no plain pairs is only built. Raises
    CompilerError where TensorRT-RTX is missing.
    """
    quantized, nodes = (
        QuantizedModel(model),
        {finding.node for finding in told if finding.severity != NOTE},
    )
    for target in targets:
        yield from (
            finding
            for finding in _of_target(quantized, target, compiler)
            if finding.code == "engine-refuses" or finding.node not in nodes
        )


def _of_target(quantized: QuantizedModel, target: Target, compiler: Compiler) -> Iterator[Finding]:
    same = quantized.original is quantized.source
    engine = compiler.build(
        Source(quantized.original.path, quantized.labelled(), quantized.original.digest)
        if same
        else quantized.original,
        target,
    )
    if engine.failure:
        yield make_finding(
            "engine-refuses",
            engine.refused_nodes[0] if engine.refused_nodes else "",
            f"{target}: {engine.failure}",
        )
    if (
        engine.failure or not same
    ):  # the layers of a model that was converted first are not those of the file
        return
    report = compare_engines(quantized, engine, engine, "compiled")
    for broken in report.broken_promises:
        yield make_finding(
            "engine-float",
            broken.node,
            f"{target}: promised {broken.expected_type}, {broken.actual}",
            broken.rule,
        )
    edges = _edges_of_halves(quantized)
    for where in dict.fromkeys(edges.get(node, node) for node in report.standalone_qdq):
        yield make_finding(
            "engine-kernel", where, f"{target}: its pair, or half of it, is a kernel of its own"
        )


def _edges_of_halves(quantized: QuantizedModel) -> dict[str, Edge]:
    """Return the first edge that the pair of each Q and DQ of the main graph stands on, by the node's label."""
    labels = [node.name for node in quantized.labelled().graph.node]
    edges: dict[str, Edge] = {}
    for each in quantized.edges:
        for position in (each.pair.q, each.pair.dq):
            if position is not None and not each.edge.graph:
                edges.setdefault(labels[position], each.edge)
    return edges
