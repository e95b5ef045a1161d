"""Pages of made-up networks, with names that try to be markup."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.reports.edge_decisions import EdgeDecision, RuleText
from qdq.reports.page import (
    GOOD,
    LOOK,
    Bars,
    Curve,
    CurvePoint,
    EngineRow,
    Figure,
    FindingGroup,
    Page,
    RangeHistogram,
    Verdict,
)
from qdq.reports.page_graph import GraphContent, PageGraph, make_graph
from qdq.reports.sections import Section

#: Ends a script, an attribute, a comment, a line of a table and a line, and turns text around.
HOSTILE = '</script><img src=x onerror="alert(1)">\'`|]]>\u2028\u202e\n<!-- ${7*7} {{7*7}} é'


def chain(count: int, name: str = "/stage{stage}/layer{layer}/{op}_{i}") -> onnx.ModelProto:
    """Return a network of so many Relu and Add nodes, each of which reads the one before it."""
    nodes: list[onnx.NodeProto] = []
    tensors = ["x"]
    for i in range(count):
        op = "Add" if i % 4 == 3 else "Relu"
        inputs = [tensors[-1], tensors[-3]] if op == "Add" else [tensors[-1]]
        label = name.format(stage=i // 2000, layer=i // 20, op=op, i=i)
        nodes.append(helper.make_node(op, inputs, [f"t{i}"], name=label))
        tensors.append(f"t{i}")
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, 8]) for end in ("x", tensors[-1])
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def chain_graph(count: int, name: str = "/stage{stage}/layer{layer}/{op}_{i}") -> PageGraph:
    """Return the drawing of a chain whose every second edge has a pair."""
    index = GraphIndex(load(chain(count, name)))
    decisions: dict[object, EdgeDecision] = {}
    for number, edge in enumerate(index.edges()):
        decision = EdgeDecision("INT8", "int8, scale 0.01, amax 1.27", ("some-rule",))
        decisions[edge] = decision if number % 2 else EdgeDecision("", "", ("body",), "Not here.")
    rules = {"some-rule": RuleText("Quantize it.", "It is fast.", "https://example.org/rule")}
    nodes = [node.label for node in index.nodes]
    content = GraphContent(
        index,
        decisions,  # type: ignore[arg-type]
        rules,
        {nodes[0]: ["a note"]},
        {nodes[0]: 12.0},
        "alone in INT8",
    )
    graph = make_graph(content)
    assert graph is not None
    return graph


def full_page(name: str = "conv") -> Page:
    """Return a page with everything that a page may have, and a name in every text."""
    engine = EngineRow("rtx:sm86", "compiled", "INT8", "", 3, 1.5, 0.25, "2 of 3 in INT8", True)
    refused = EngineRow("rtx:sm86", "compiled", "float", f"no kernel for {name}")
    finding = FindingGroup(
        "opset", "error", name, "It fails.", "raise it", "docs/findings.md#opset", (name,)
    )
    section = Section(f"Plan {name}", (name,), ("node", "edges"), ((name, 3),))
    return Page(
        command="quantize",
        title=name,
        verdict=Verdict(LOOK, "Look", (name,)),
        figures=(Figure("Signal-to-noise", "30.1 dB", name),),
        results=(section,),
        engines=(engine, refused),
        graph=chain_graph(30, "/a/{op}_{i}" + name.replace("{", "{{").replace("}", "}}")),
        bars=(Bars("Noise", ("activations", "weights"), ((name, (0.6, 0.4), "12 dB"),)),),
        curves=(
            Curve("Trade-off", "work", "dB", (CurvePoint(0, 1, name), CurvePoint(1, 2, name))),
        ),
        histograms=(
            RangeHistogram(name, 2.0, 1.5, (9, 5, 0, 1)),
            RangeHistogram("t0", 1.0, 1.0, (1, 1)),
        ),
        findings=(finding,),
        details=(section,),
    )


def small_page() -> Page:
    """Return a page of a command that knows nothing but its verdict."""
    return Page("check", "m.onnx", Verdict(GOOD, "The check has no findings"))
