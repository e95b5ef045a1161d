"""Plugins of TensorRT are planned around: in ONNX's domain, in another, or in one without an import."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.graph.plugins import declare_plugins, list_plugins
from qdq.graph.source import canonical_bytes
from tests.support.graphs import build, node, noise, value

WEIGHTS = {"w": noise(4, 3, 3, 3, seed=1), "w2": noise(2, 4, 1, 1, seed=2)}

#: Domain of a plugin, and whether it is imported.
DOMAINS = pytest.mark.parametrize(
    ("domain", "is_imported"), [("", True), ("TRT", True), ("TRT", False)]
)


def detector(domain: str, is_imported: bool, opset: int = 17) -> onnx.ModelProto:
    """Return two convolutions and a plugin."""
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["a", "w2"], "b"),
        node("EfficientNMS_TRT", ["b"], "y", domain=domain),
    ]
    imports = {domain: 1} if domain and is_imported else {}
    return build(
        nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 9, 4]}, WEIGHTS, opset=opset, domains=imports
    )


@DOMAINS
@pytest.mark.parametrize("opset", [11, 17])
def test_a_plugin_keeps_its_domain_while_the_opset_is_raised(
    domain: str, is_imported: bool, opset: int
) -> None:
    source = qdq.load(detector(domain, is_imported, opset))
    assert source.model.graph.node[2].domain == domain
    assert {entry.domain for entry in source.model.opset_import} == (
        {"", domain} if is_imported else {""}
    )
    assert source.model.opset_import[0].version == max(opset, 13)


@DOMAINS
def test_the_types_before_a_plugin_are_inferred(domain: str, is_imported: bool) -> None:
    index = GraphIndex(qdq.load(detector(domain, is_imported)))
    assert index.shape("b") == (1, 2, 4, 4)


@DOMAINS
def test_a_plugin_in_a_body_is_planned_around(domain: str, is_imported: bool) -> None:
    branches = {}
    for name in ("then", "else"):
        nodes = [
            node("Conv", ["x", "w"], f"{name}_a"),
            node("Plug", [f"{name}_a"], f"{name}_y", domain=domain),
        ]
        output = value(f"{name}_y", [1, 4, 4, 4])
        branches[f"{name}_branch"] = helper.make_graph(nodes, name, [], [output])
    model = build(
        [node("If", ["c"], "y", **branches)],
        {"x": [1, 3, 6, 6]},
        {"y": [1, 4, 4, 4]},
        {"w": WEIGHTS["w"]},
        opset=11,
        domains={domain: 1} if domain and is_imported else {},
    )
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    plan = qdq.plan(model)
    assert {p.edge.graph for p in plan.placements} == {"y_node.then_branch", "y_node.else_branch"}
    assert len(plan.placements) == 4


@pytest.mark.parametrize(("operator", "opset"), [("Plug", 12), ("Softmax", 12)])
@DOMAINS
def test_functions_are_inlined_beside_plugins(
    operator: str, opset: int, domain: str, is_imported: bool
) -> None:
    function = helper.make_function(
        "local",
        "Block",
        ["a"],
        ["b"],
        [node(operator, ["a"], "b")],
        [helper.make_opsetid("", opset)],
    )
    nodes = [
        node("Block", ["x"], "a", domain="local"),
        node("Conv", ["a", "w"], "b"),
        node("Plug", ["b"], "y", domain=domain),
    ]
    model = build(
        nodes,
        {"x": [1, 3, 6, 6]},
        {"y": [1, 4, 4, 4]},
        {"w": WEIGHTS["w"]},
        domains={"local": 1} | ({domain: 1} if domain and is_imported else {}),
        functions=[function],
    )
    operators = [(n.domain, n.op_type) for n in qdq.load(model).model.graph.node]
    assert ("", operator) in operators
    assert operators[-2:] == [("", "Conv"), (domain, "Plug")]


def test_a_plugin_that_a_newer_opset_would_make_an_operator_of_onnx_is_refused() -> None:
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("GroupNormalization", ["a"], "y", plugin_version="1"),
    ]
    model = build(
        nodes,
        {"x": [1, 3, 6, 6]},
        {"y": [1, 4, 4, 4]},
        {"w": WEIGHTS["w"].astype("float16")},
        opset=13,
        dtype=TensorProto.FLOAT16,
    )
    with pytest.raises(
        ModelError,
        match=r"y_node \(GroupNormalization\) is no operator of the model's opset, but one of opset 19",
    ):
        qdq.plan(model)
    model.graph.node[1].domain = "mine"
    assert len(qdq.plan(model).placements) == 2


def test_a_normalization_of_an_old_opset_becomes_the_one_that_onnx_adopted() -> None:
    nodes = [
        node("LayerNormalization", ["x", "g"], "n", axis=-1, epsilon=1e-3),
        node("MatMul", ["n", "k"], "y"),
    ]
    half = noise(8, 8, seed=3).astype("float16")
    model = build(
        nodes,
        {"x": [2, 8]},
        {"y": [2, 8]},
        {"k": half, "g": half[0]},
        opset=13,
        dtype=TensorProto.FLOAT16,
    )
    result = qdq.quantize(model, "noise")
    onnx.checker.check_model(result.model, full_check=True)
    assert len(result.plan.placements) == 2
    assert result.source.model.opset_import[0].version == 19


def test_a_plugin_of_constants_is_no_constant() -> None:
    nodes = [node("Anchors", ["w"], "k"), node("Conv", ["x", "k"], "y")]
    model = build(nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 4, 4, 4]}, {"w": WEIGHTS["w"]})
    assert not GraphIndex(qdq.load(model)).is_constant("k")


def test_a_model_without_plugins_is_not_copied() -> None:
    model = build([node("Conv", ["x", "w"], "y")], {"x": [1, 3, 6, 6]}, ["y"], {"w": WEIGHTS["w"]})
    assert declare_plugins(model) is model
    assert list_plugins(model) == frozenset()


@DOMAINS
def test_a_quantized_model_keeps_its_plugins_and_stripping_returns_the_input(
    domain: str, is_imported: bool
) -> None:
    model = detector(domain, is_imported)
    result = qdq.quantize(model, "noise")
    plugins = [n for n in result.model.graph.node if n.op_type == "EfficientNMS_TRT"]
    assert [n.SerializeToString() for n in plugins] == [model.graph.node[2].SerializeToString()]
    assert canonical_bytes(qdq.strip(result.model)) == canonical_bytes(model)
