"""Model-local functions are written out at load, and a model with them is quantized like the plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.errors import ModelError
from qdq.graph.source import canonical_bytes
from qdq.planning.decisions import FUNCTION
from qdq.quantized.stripper import strip
from tests.support.cli_runner import refused
from tests.support.cli_runner import save as write
from tests.support.graphs import build, node, noise, random_feed, run

WEIGHTS = {"w": noise(4, 4, seed=1) / 2, "v": noise(4, 4, seed=2) / 2}

#: The version of onnx.
ONNX = tuple(map(int, onnx.__version__.split(".")[:2]))


def function(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[str],
    opset: int = 17,
    domain: str = "local",
    attributes: tuple[str, ...] = (),
) -> onnx.FunctionProto:
    """Return a function that gives `b`."""
    return helper.make_function(
        domain,
        name,
        inputs,
        ["b"],
        nodes,
        [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)],
        list(attributes),
    )


def calling(nodes: list[onnx.NodeProto], *functions: onnx.FunctionProto) -> onnx.ModelProto:
    """Return a model over x [2,4] that calls functions, which gives y [2,4]."""
    domains = {f.domain: 1 for f in functions if f.domain}
    return build(nodes, {"x": [2, 4]}, {"y": [2, 4]}, WEIGHTS, domains=domains, functions=functions)


def block() -> onnx.FunctionProto:
    """Return MatMul and Tanh as a function of a tensor and a weight."""
    return function(
        "Block",
        [node("MatMul", ["a", "k"], "m", name="matmul"), node("Tanh", ["m"], "b", name="tanh")],
        ["a", "k"],
    )


def quantized(model: onnx.ModelProto) -> qdq.Quantized:
    """Return the model quantized; assert what must hold of any result."""
    result = qdq.quantize(model, "noise", method="max")
    assert result.findings == ()
    onnx.checker.check_model(result.model, full_check=True)
    assert canonical_bytes(strip(result.model)) == canonical_bytes(result.source.model)
    feed = random_feed(model)
    np.testing.assert_allclose(run(result.source.model, feed)[0], run(model, feed)[0], rtol=1e-6)
    np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=0.1)
    return result


def test_functions_are_inlined_with_a_note_and_their_layers_quantized() -> None:
    model = calling(
        [
            node("Block", ["x", "w"], "f", domain="local"),
            node("Block", ["f", "v"], "y", domain="local"),
        ],
        block(),
    )
    before = canonical_bytes(model)
    result = quantized(model)
    assert result.plan.notes == ("model-local functions inlined: local.Block",)
    assert [str(p.edge) for p in result.plan.placements] == [
        "x -> matmul__1[0]", "w -> matmul__1[1]", "f -> matmul__2[0]", "v -> matmul__2[1]",
    ]  # fmt: skip
    assert not result.model.functions
    assert canonical_bytes(model) == before


def test_the_digest_is_that_of_the_model_as_it_was_given(tmp_path: Path) -> None:
    model = calling([node("Block", ["x", "w"], "y", domain="local")], block())
    path = write(model, tmp_path / "m.onnx")
    assert qdq.load(path).digest == qdq.load(model).digest != qdq.load(qdq.load(model).model).digest


def test_functions_that_call_functions_are_inlined() -> None:
    outer = function(
        "Outer",
        [
            node("Block", ["a", "k"], "c", domain="local"),
            node("Block", ["c", "k"], "b", domain="local"),
        ],
        ["a", "k"],
    )
    result = quantized(calling([node("Outer", ["x", "w"], "y", domain="local")], outer, block()))
    assert result.plan.notes == ("model-local functions inlined: local.Block, local.Outer",)
    assert len(result.plan.placements) == 4


def test_attributes_of_a_call_reach_the_nodes() -> None:
    act = node("LeakyRelu", ["m"], "b")
    act.attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    )
    leaky = function(
        "Leaky", [node("MatMul", ["a", "k"], "m"), act], ["a", "k"], attributes=("slope",)
    )
    result = quantized(calling([node("Leaky", ["x", "w"], "y", domain="local", slope=0.5)], leaky))
    assert result.source.model.graph.node[1].attribute[0].f == 0.5


def test_functions_called_in_a_body_are_inlined_there() -> None:
    body = helper.make_graph(
        [node("Block", ["x", "w"], "t", domain="local")],
        "b",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 4])],
    )
    other = helper.make_graph(
        [node("Identity", ["x"], "e")],
        "e",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [2, 4])],
    )
    model = calling(
        [node("If", ["yes"], "y", name="if", then_branch=body, else_branch=other)], block()
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    assert [str(p.edge) for p in quantized(model).plan.placements] == [
        "x -> if.then_branch/matmul__1[0]",
        "w -> if.then_branch/matmul__1[1]",
    ]


@pytest.mark.parametrize("domain", ["com.microsoft", ""])
def test_a_function_with_the_name_of_an_operator_is_what_it_says(domain: str) -> None:
    function_proto = function(
        "Gelu" if domain else "Elu",
        [node("MatMul", ["a", "w0"], "m"), node("Tanh", ["m"], "b")],
        ["a", "w0"],
        domain=domain,
    )
    model = calling([node(function_proto.name, ["x", "w"], "y", domain=domain)], function_proto)
    source = qdq.load(model)
    assert [n.op_type for n in source.model.graph.node] == ["MatMul", "Tanh"]
    assert len(qdq.plan(model).placements) == 2


@pytest.mark.parametrize("opset", [13, 15, 16])
def test_a_function_of_another_opset_is_inlined_where_its_operators_are_the_same(
    opset: int,
) -> None:
    old = block()
    old.opset_import[0].version = opset
    assert (
        len(
            quantized(
                calling([node("Block", ["x", "w"], "y", domain="local")], old)
            ).plan.placements
        )
        == 2
    )


def test_a_function_that_cannot_be_inlined_stays_and_is_named() -> None:
    old = function(
        "Old", [node("Unheard", ["a"], "c"), node("Softmax", ["c"], "b")], ["a", "k"], opset=11
    )
    plan = qdq.plan(
        calling(
            [node("Old", ["x", "w"], "f", domain="local"), node("MatMul", ["f", "v"], "y")], old
        )
    )
    assert [
        (item.edge.node, item.because) for item in plan.left_float if item.because == FUNCTION
    ] == [("f_node", FUNCTION)]
    assert plan.notes == ()
    assert len(plan.placements) == 2


def test_a_function_that_nothing_calls_is_left_alone() -> None:
    model = calling([node("MatMul", ["x", "w"], "y")], block())
    result = qdq.quantize(model, "noise")
    assert [f.name for f in result.model.functions] == ["Block"]
    assert result.plan.notes == ()
    assert canonical_bytes(strip(result.model)) == canonical_bytes(model)


def test_functions_that_call_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    first = function("One", [node("Two", ["a", "k"], "b", domain="local")], ["a", "k"])
    second = function("Two", [node("One", ["a", "k"], "b", domain="local")], ["a", "k"])
    path = write(
        calling([node("One", ["x", "w"], "y", domain="local")], first, second), tmp_path / "m.onnx"
    )
    message = refused(tmp_path, "plan", path)
    assert "m.onnx: the model is damaged: its function local." in message
    assert "calls itself. Export or download it again." in message


def test_pairs_in_a_function_are_seen_and_stripped() -> None:
    pair = [
        node("QuantizeLinear", ["a", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("MatMul", ["d", "k"], "b"),
    ]
    constants = [
        node("Constant", [], "s", value=onnx.numpy_helper.from_array(np.array(0.1, np.float32)))
    ]
    constants.append(
        node("Constant", [], "z", value=onnx.numpy_helper.from_array(np.array(0, np.int8)))
    )
    model = calling(
        [node("Quantized", ["x", "w"], "y", domain="local")],
        function("Quantized", [*constants, *pair], ["a", "k"]),
    )
    with pytest.raises(ModelError, match="is quantized already"):
        qdq.plan(model)
    assert [n.op_type for n in strip(model).graph.node] == ["MatMul"]


def test_a_weight_that_an_if_over_shapes_transposes_is_a_constant_as_in_old_torch_exports() -> None:
    def side(name: str, op: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node(op, ["a"], name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )

    two = node("Constant", [], "two", value=onnx.numpy_helper.from_array(np.array(2)))
    branches = {"then_branch": side("turned", "Transpose"), "else_branch": side("same", "Identity")}
    nodes = [
        node("Shape", ["a"], "s"),
        node("Size", ["s"], "rank"),
        two,
        node("Equal", ["rank", "two"], "is"),
        node("If", ["is"], "b", **branches),
    ]
    model = calling(
        [node("Turn", ["w"], "t", domain="local"), node("MatMul", ["x", "t"], "y")],
        function("Turn", nodes, ["a"]),
    )
    result = quantized(model)
    weight = next(s for s in result.scales.by_pair if s.tensor == "t")
    np.testing.assert_allclose(weight.scales, np.abs(WEIGHTS["w"]).max(axis=1) / 127, rtol=0.3)
    (report,) = qdq.validate(
        result.source, result.model, targets=[qdq.parse_target("rtx:sm86")]
    ).engines
    assert [(v.node, v.int8) for v in report.layers] == [("y_node", True)]


def chained(depth: int, calls: int = 1) -> onnx.ModelProto:
    """Return a model of functions that each call the next one, several times in a row."""
    functions = [function(f"F{depth}", [node("Relu", ["a"], "b")], ["a"])]
    for number in range(depth):
        nodes = []
        for call in range(calls):
            read = f"t{call}" if call else "a"
            result = "b" if call == calls - 1 else f"t{call + 1}"
            nodes.append(node(f"F{number + 1}", [read], result, domain="local"))
        functions.append(function(f"F{number}", nodes, ["a"]))
    return calling(
        [node("F0", ["x"], "f", domain="local"), node("MatMul", ["f", "w"], "y")], *functions
    )


@pytest.mark.skipif(ONNX < (1, 22), reason="onnx reads deeper chains before 1.22")
@pytest.mark.parametrize("command", ["plan", "check", "diff"])
def test_functions_that_call_each_other_too_deeply_are_refused(
    tmp_path: Path, command: str
) -> None:
    path = write(chained(400), tmp_path / "model.onnx")
    models = [path, path] if command == "diff" else [path]
    message = refused(tmp_path, command, *models)
    assert "its functions call each other 401 deep, and ONNX reads 100" in message


def test_functions_that_double_are_refused_before_they_are_inlined(tmp_path: Path) -> None:
    path = write(chained(40, calls=2), tmp_path / "model.onnx")
    message = refused(tmp_path, "plan", path)
    assert "its functions call each other so often that it has over 300000 nodes" in message


def test_functions_in_a_deep_chain_or_called_often_are_inlined() -> None:
    deep = qdq.load(chained(90))
    often = qdq.load(chained(6, calls=3))
    assert [item.op_type for item in deep.model.graph.node] == ["Relu", "MatMul"]
    assert len(often.model.graph.node) == 3**6 + 1
