"""Bodies of If, Loop and Scan are planned, calibrated, rewritten, stripped and checked like the main graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import qdq
import qdq.graph.index
from qdq.errors import DataError, UsageError
from qdq.graph.source import canonical_bytes
from qdq.planning.decisions import BODY
from qdq.planning.plan_file import plan_to_yaml, read_plan
from qdq.quantized.stripper import strip
from tests.support.body_models import MATRIX, branch, branching, build_if, graph, samples
from tests.support.cli_runner import refused
from tests.support.cli_runner import run as cli
from tests.support.cli_runner import save as write
from tests.support.dither import rounding_bounds
from tests.support.graphs import Array, build, node, noise, run, value

BOTH = [
    {"x": noise(2, 4, seed=1), "c": np.array(True)},
    {"x": noise(2, 4, seed=2), "c": np.array(False)},
]


def looping(
    turn: list[onnx.NodeProto] | None = None,
    turns: int = 3,
    more: list[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """Return a Loop over `state` [2,4], whose turns make `next` of it."""
    turn = turn or [node("MatMul", ["state", "w"], "p", name="inside"), node("Tanh", ["p"], "next")]
    body = graph(
        [node("Identity", ["go"], "still"), *turn],
        [value("still", [], TensorProto.BOOL), value("next", [2, 4]), *(more or [])],
        [
            value("n", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("state", [2, 4]),
        ],
    )
    constants = {"turns": np.array(turns), "true": np.array(True)}
    return build(
        [node("Loop", ["turns", "true", "x"], "y", name="loop", body=body)],
        {"x": [2, 4]},
        {"y": [2, 4]},
        {**MATRIX, **constants},
    )


def scanning() -> onnx.ModelProto:
    """Return a Scan over x [5,2,4] with a state [2,4]."""
    turn = [
        node("MatMul", ["part", "w"], "p", name="inside"),
        node("Add", ["p", "state"], "s"),
        node("Tanh", ["s"], "next"),
        node("Identity", ["next"], "out"),
    ]
    body = graph(
        turn,
        [value("next", [2, 4]), value("out", [2, 4])],
        [value("state", [2, 4]), value("part", [2, 4])],
    )
    scan = node(
        "Scan",
        ["zero", "x"],
        ["last", "y"],
        name="scan",
        body=body,
        num_scan_inputs=1,
        scan_output_directions=[0],
    )
    return build(
        [scan],
        {"x": [5, 2, 4]},
        {"last": [2, 4], "y": [5, 2, 4]},
        {**MATRIX, "zero": np.zeros((2, 4), np.float32)},
    )


def quantized(model: onnx.ModelProto, **options: Any) -> qdq.Quantized:
    """Return the model quantized on samples that run every body; assert what must hold of any result."""
    feeds = samples(model)
    result = qdq.quantize(model, feeds, **options)
    assert result.findings == ()
    onnx.checker.check_model(result.model, full_check=True)
    assert canonical_bytes(strip(result.model)) == canonical_bytes(model)
    for feed in feeds:
        for expected, actual in zip(run(model, feed), run(result.model, feed), strict=True):
            np.testing.assert_allclose(
                actual, expected, atol=0.1 * max(1.0, np.abs(expected).max())
            )
    return result


def edges(plan: qdq.Plan) -> set[str]:
    """Return the quantized edges as they are printed."""
    return {str(p.edge) for p in plan.placements}


def bodies(model: onnx.ModelProto) -> dict[str, onnx.GraphProto]:
    """Return the bodies of the main graph's nodes by attribute name."""
    return {a.name: a.g for n in model.graph.node for a in n.attribute if a.HasField("g")}


def ops(body: onnx.GraphProto) -> list[str]:
    """Return a graph's operators in order."""
    return [n.op_type for n in body.node]


def test_both_branches_of_an_if_are_quantized_inside() -> None:
    result = quantized(branching())
    assert edges(result.plan) == {
        "r -> if.then_branch/then_matmul[0]", "w -> if.then_branch/then_matmul[1]",
        "r -> if.else_branch/else_matmul[0]", "v -> if.else_branch/else_matmul[1]",
        "i -> y_node[0]", "v -> y_node[1]",
    }  # fmt: skip
    for body in bodies(result.model).values():
        assert sorted(ops(body)) == [
            "DequantizeLinear",
            "DequantizeLinear",
            "MatMul",
            "QuantizeLinear",
            "QuantizeLinear",
        ]


def test_a_tensor_from_outside_gets_its_pair_inside_with_one_scale_in_all_bodies() -> None:
    result = quantized(branching())
    scales = {s.tensor: s.scales for s in result.scales.by_pair}
    assert scales["if.then_branch/r"] == scales["if.else_branch/r"]
    assert "QuantizeLinear" not in [n.op_type for n in result.model.graph.node[:2]]


def test_the_body_of_a_loop_is_quantized_and_its_state_observed_in_every_turn() -> None:
    model = looping(
        [
            node("Add", ["state", "one"], "grown"),
            node("MatMul", ["grown", "w"], "p", name="inside"),
            node("Mul", ["p", "zero"], "nothing"),
            node("Add", ["grown", "nothing"], "next"),
        ]
    )
    for name, number in (("zero", 0.0), ("one", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(number), name))
    result = quantized(model, method="max")
    assert {"grown -> loop.body/inside[0]", "w -> loop.body/inside[1]"} <= edges(result.plan)
    largest = np.abs(
        samples(model)[0]["x"] + np.arange(1, 4, dtype=np.float32)[:, None, None]
    ).max()
    scale = next(s.scales[0] for s in result.scales.by_pair if s.tensor == "loop.body/grown")
    assert scale == pytest.approx(largest / 127)


def test_the_body_of_a_scan_is_quantized() -> None:
    result = quantized(scanning(), method="max")
    assert {"part -> scan.body/inside[0]", "w -> scan.body/inside[1]"} <= edges(result.plan)
    scale = next(s.scales[0] for s in result.scales.by_pair if s.tensor == "scan.body/part")
    assert scale == pytest.approx(np.abs(samples(scanning())[0]["x"]).max() / 127)


def test_bodies_in_bodies_are_quantized() -> None:
    inner = node(
        "If", ["d"], "o", name="inner", then_branch=branch("a", "w"), else_branch=branch("b", "w")
    )
    model = build_if(graph([inner], [value("o", [2, 4])]), branch("else", "v"))
    model.graph.input.append(value("d", [], TensorProto.BOOL))
    planned = edges(quantized(model).plan)
    assert "r -> if.then_branch/inner.then_branch/a_matmul[0]" in planned
    assert "w -> if.then_branch/inner.else_branch/b_matmul[1]" in planned


def test_branches_that_take_turns_in_a_loop_are_both_observed() -> None:
    def turn(weight: str, scale: str) -> onnx.GraphProto:
        return graph(
            [node("Mul", ["state", scale], "k"), node("MatMul", ["k", weight], "s")],
            [value("s", [2, 4])],
        )

    choice = node(
        "If",
        ["even"],
        "p",
        name="if",
        then_branch=turn("w", "small"),
        else_branch=turn("v", "large"),
    )
    model = looping(
        [
            node("Mod", ["n", "two"], "left"),
            node("Equal", ["left", "nil"], "even"),
            choice,
            node("Tanh", ["p"], "next"),
        ]
    )
    constants = {
        "two": np.array(2),
        "nil": np.array(0),
        "small": np.array(0.1, np.float32),
        "large": np.array(10.0, np.float32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    scales = {s.tensor: s.scales[0] for s in quantized(model, method="max").scales.by_pair}
    assert 0 < scales["loop.body/if.then_branch/k"] < 0.01
    assert 0.01 < scales["loop.body/if.else_branch/k"] < 0.1


def test_branches_may_share_names_of_tensors_and_nodes() -> None:
    def same(weight: str) -> onnx.GraphProto:
        return graph(
            [node("Mul", ["r", weight], "k"), node("MatMul", ["k", "w"], "s", name="m")],
            [value("s", [2, 4])],
        )

    result = quantized(
        build_if(
            same("small"),
            same("large"),
            small=np.array(0.1, np.float32),
            large=np.array(10.0, np.float32),
        ),
        method="max",
    )
    scales = {s.tensor: s.scales[0] for s in result.scales.by_pair}
    assert scales["if.else_branch/k"] > 50 * scales["if.then_branch/k"]


def test_a_branch_that_never_runs_stays_in_float_with_the_reason() -> None:
    result = quantized(build_if(branch("then", "w"), branch("else", "v"), c=np.array(False)))
    (unplanned,) = [item for item in result.plan.left_float if item.because == BODY]
    assert (unplanned.edge.graph, unplanned.reason) == (
        "if.then_branch",
        "The node never runs: the condition of if is constant.",
    )
    assert ops(bodies(result.model)["then_branch"]) == ["MatMul"]
    assert "QuantizeLinear" in ops(bodies(result.model)["else_branch"])


def test_bodies_of_other_operators_stay_in_float_with_the_reason() -> None:
    body = graph([node("MatMul", ["e", "w"], "f")], [value("f", [2, 4])], [value("e", [2, 4])])
    nodes = [
        node("SequenceConstruct", ["x", "x"], "q"),
        node("SequenceMap", ["q"], "z", body=body),
        node("SequenceAt", ["z", "nil"], "y"),
    ]
    plan = qdq.plan(build(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {**MATRIX, "nil": np.array(0)}))
    assert [(str(item.edge), item.because) for item in plan.left_float] == [
        ("e -> z_node.body/f_node[0]", BODY)
    ]
    assert (
        plan.left_float[0].reason
        == "The node is in a body of SequenceMap. Only those of If, Loop and Scan are planned."
    )


def test_data_that_never_takes_a_branch_is_refused_with_its_path() -> None:
    model = build_if(
        graph(
            [node("Relu", ["r"], "k"), *branch("then", "w", "k").node], [value("then_y", [2, 4])]
        ),
        branch("else", "v"),
    )
    with pytest.raises(
        DataError,
        match=r"no sample runs the subgraph if.then_branch, so 'k' has no range\. .* --leave-float 'if.then_branch/\*'",
    ):
        qdq.quantize(model, BOTH[1:])
    assert ops(
        bodies(qdq.quantize(model, BOTH[1:], leave_float=["if.then_branch/*"]).model)["then_branch"]
    ) == ["Relu", "MatMul"]


@pytest.mark.parametrize("glob", ["then_matmul", "if.then_branch/then_matmul", "if.then*"])
def test_globs_name_nodes_in_bodies(glob: str) -> None:
    result = quantized(branching(), leave_float=[glob])
    assert not any(edge.startswith(("r -> if.then", "w -> if.then")) for edge in edges(result.plan))
    assert "r -> if.else_branch/else_matmul[0]" in edges(result.plan)


def test_a_glob_that_matches_in_no_body_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"no node is named 'then_matmull'\. Did you mean 'then_matmul'"
    ):
        qdq.plan(branching(), leave_float=["then_matmull"])


def test_a_plan_with_bodies_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    plan = qdq.plan(branching())
    (tmp_path / "plan.yaml").write_text(plan_to_yaml(plan))
    assert read_plan(tmp_path / "plan.yaml") == plan


def test_a_plan_that_names_no_body_of_the_model_is_refused(tmp_path: Path) -> None:
    model = write(branching(), tmp_path / "m.onnx")
    plan = tmp_path / "plan.yaml"
    assert cli("plan", model, "-o", plan)[0] == 0
    plan.write_text(plan.read_text().replace("graph: if.then_branch", "graph: if.them_branch"))
    np.savez(tmp_path / "d.npz", **BOTH[0])
    message = refused(
        tmp_path, "calibrate", model, plan, "--data", tmp_path / "d.npz", "-o", tmp_path / "s.json"
    )
    assert "m.onnx has no body 'if.them_branch'. Did you mean 'if.then_branch'" in message


def test_explain_finds_nodes_and_tensors_of_bodies() -> None:
    rules = qdq.load_rules()
    model = branching()
    plan = qdq.plan(model)
    for name in ("if.else_branch/else_matmul", "else_matmul"):
        assert [str(e.edge) for e in qdq.explain(model, plan, rules, name)] == [
            "r -> if.else_branch/else_matmul[0]",
            "v -> if.else_branch/else_matmul[1]",
        ]
    assert {str(e.edge) for e in qdq.explain(model, plan, rules, "r")} == {
        "r -> if.else_branch/else_matmul[0]",
        "r -> if.then_branch/then_matmul[0]",
    }


def test_check_finds_a_pair_missing_in_a_body() -> None:
    model = quantized(branching()).model
    body = bodies(model)["then_branch"]
    matmul = body.node[-1]
    matmul.input[0] = "r"
    kept = [n for n in body.node if not n.name.startswith("r_")]
    del body.node[:]
    body.node.extend(kept)
    assert [(f.code, f.where) for f in qdq.check(model)] == [
        ("half-quantized", "r -> if.then_branch/then_matmul[0]")
    ]


def test_check_finds_a_pair_that_is_not_wanted_and_a_lone_node_in_a_body() -> None:
    model = quantized(branching(), leave_float=["else_matmul"]).model
    findings = qdq.check(quantized(branching()).model, leave_float=["else_matmul"])
    assert {(f.code, f.where) for f in findings} == {
        ("unwanted-pair", "r -> if.else_branch/else_matmul[0]"),
        ("unwanted-pair", "v -> if.else_branch/else_matmul[1]"),
    }
    body = bodies(model)["else_branch"]
    body.node.insert(
        0,
        node(
            "QuantizeLinear",
            ["r", next(t.name for t in model.graph.initializer if t.name.endswith("r_scale"))],
            "lone",
            name="lone",
        ),
    )
    assert [(f.code, f.where) for f in qdq.check(model)] == [
        (code, "if.else_branch/lone") for code in ("no-zero-point", "lone-quantize")
    ]


def test_pairs_of_others_in_bodies_are_stripped_their_scales_and_stored_integers_too() -> None:
    model = branching()
    body = bodies(model)["then_branch"]
    integers = np.array([[1, -2, 3, 4]] * 4, np.int8)
    body.initializer.extend(
        [
            numpy_helper.from_array(np.array(0.5, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
            numpy_helper.from_array(integers, "stored"),
        ]
    )
    body.node[0].input[:] = ["d", "e"]
    body.node.insert(0, node("DequantizeLinear", ["stored", "s", "z"], "e"))
    body.node.insert(0, node("DequantizeLinear", ["q", "s", "z"], "d"))
    body.node.insert(0, node("QuantizeLinear", ["r", "s", "z"], "q"))
    stripped = bodies(strip(model))["then_branch"]
    assert [(n.op_type, list(n.input)) for n in stripped.node] == [("MatMul", ["r", "e"])]
    assert [t.name for t in stripped.initializer] == ["e"]
    np.testing.assert_array_equal(
        numpy_helper.to_array(stripped.initializer[0]), integers * np.float32(0.5)
    )


def test_a_model_with_pairs_in_a_body_is_quantized_already() -> None:
    model = quantized(branching(), leave_float=["y_node"]).model
    with pytest.raises(qdq.errors.ModelError, match="is quantized already"):
        qdq.plan(model)


def test_a_state_that_grows_with_each_turn_is_observed_in_all_of_them() -> None:
    turn = [
        node("Identity", ["go"], "still"),
        node("MatMul", ["state", "w"], "p"),
        node("Add", ["p", "one"], "s"),
        node("Concat", ["state", "s"], "next", axis=0),
    ]
    inputs = [
        value("n", [], TensorProto.INT64),
        value("go", [], TensorProto.BOOL),
        value("state", [None, 4]),
    ]
    body = graph(turn, [value("still", [], TensorProto.BOOL), value("next", [None, 4])], inputs)
    weights = {
        **MATRIX,
        "turns": np.array(3),
        "true": np.array(True),
        "one": np.array(1, np.float32),
    }
    model = build(
        [node("Loop", ["turns", "true", "x"], "y", name="loop", body=body)],
        {"x": [2, 4]},
        {"y": [None, 4]},
        weights,
    )
    (scale,) = (
        s.scales[0]
        for s in quantized(model, method="max").scales.by_pair
        if s.tensor == "loop.body/state"
    )
    state = run(model, samples(model)[0])[0]
    assert scale == pytest.approx(np.abs(state[: len(state) // 2]).max() / 127)


def test_branches_with_tensors_of_changing_shape_may_take_turns_in_a_loop() -> None:
    def side(weight: str) -> onnx.GraphProto:
        return graph(
            [node("MatMul", ["state", weight], f"{weight}_s")], [value(f"{weight}_s", [None, 4])]
        )

    choice = node("If", ["even"], "p", name="if", then_branch=side("w"), else_branch=side("v"))
    turn = [
        node("Identity", ["go"], "still"),
        node("Mod", ["n", "two"], "left"),
        node("Equal", ["left", "nil"], "even"),
        choice,
    ]
    inputs = [
        value("n", [], TensorProto.INT64),
        value("go", [], TensorProto.BOOL),
        value("state", [None, 4]),
    ]
    grown = node("Concat", ["state", "p"], "next", axis=0)
    body = graph(
        [*turn, grown], [value("still", [], TensorProto.BOOL), value("next", [None, 4])], inputs
    )
    constants = {
        "turns": np.array(3),
        "true": np.array(True),
        "two": np.array(2),
        "nil": np.array(0),
    }
    model = build(
        [node("Loop", ["turns", "true", "x"], "y", name="loop", body=body)],
        {"x": [2, 4]},
        {"y": [None, 4]},
        {**MATRIX, **constants},
    )
    assert len(quantized(model).plan.placements) == 4


def test_names_in_bodies_are_not_used_for_new_tensors() -> None:
    result = quantized(
        build_if(branch("then", "w", result="v_scale"), branch("else", "v", result="r_quantized"))
    )
    assert "v_scale" not in {t.name for t in result.model.graph.initializer}


def test_constants_and_types_come_from_around_a_body() -> None:
    index = qdq.graph.index.GraphIndex(qdq.load(branching()))
    body = index.scopes["if.then_branch"]
    assert body.is_constant("w")
    assert not body.is_constant("r")
    np.testing.assert_array_equal(body.constant("w"), MATRIX["w"])
    assert (body.shape("r"), body.shape("then_y"), body.elem_type("w")) == (
        (2, 4),
        (2, 4),
        TensorProto.FLOAT,
    )


class Builder:
    """Draws nodes that make one [2,4] tensor of another, with bodies in bodies."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.count = draw, 0
        self.weights: dict[str, Array] = {"turns": np.array(2), "true": np.array(True)}

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def chain(self, tensor: str, depth: int) -> tuple[list[onnx.NodeProto], str]:
        kinds = ["matmul", "relu", "add", *(["If", "Loop", "Scan"] * 2 if depth else [])]
        nodes: list[onnx.NodeProto] = []
        last = tensor
        for kind in self.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)):
            step_nodes, last = self.step(kind, last, tensor, depth)
            nodes += step_nodes
        return nodes, last

    def step(
        self, kind: str, last: str, start: str, depth: int
    ) -> tuple[list[onnx.NodeProto], str]:
        out = self.name()
        if kind == "matmul":
            weight = self.draw(
                st.sampled_from([*sorted(n for n in self.weights if n.startswith("w")), "new"])
            )
            if weight == "new":
                weight = f"w{len(self.weights)}"
                self.weights[weight] = noise(4, 4, seed=len(self.weights)) / 3
            return [
                node("MatMul", [last, weight], f"{out}_m"),
                node("Tanh", [f"{out}_m"], out),
            ], out
        if kind == "relu":
            return [node("Relu", [last], out)], out
        if kind == "add":
            return [node("Add", [last, start], f"{out}_a"), node("Tanh", [f"{out}_a"], out)], out
        return [getattr(self, kind.lower())(last, out, depth)], out

    def body(self, tensor: str, depth: int) -> tuple[list[onnx.NodeProto], str]:
        nodes, last = self.chain(tensor, depth - 1)
        output = self.name()
        return [*nodes, node("Identity", [last], output)], output

    def if_(self, last: str, out: str, depth: int) -> onnx.NodeProto:
        branches = [self.body(last, depth) for _ in range(2)]
        then, otherwise = (graph(nodes, [value(output, [2, 4])]) for nodes, output in branches)
        return node(
            "If", ["c" if depth == 2 else "d"], out, then_branch=then, else_branch=otherwise
        )

    def loop(self, last: str, out: str, depth: int) -> onnx.NodeProto:
        nodes, output = self.body(f"{out}_s", depth)
        inputs = [
            value(f"{out}_n", [], TensorProto.INT64),
            value(f"{out}_go", [], TensorProto.BOOL),
            value(f"{out}_s", [2, 4]),
        ]
        outputs = [value(f"{out}_still", [], TensorProto.BOOL), value(output, [2, 4])]
        return node(
            "Loop",
            ["turns", "true", last],
            out,
            body=graph([*nodes, node("Identity", [f"{out}_go"], f"{out}_still")], outputs, inputs),
        )

    def scan(self, last: str, out: str, depth: int) -> onnx.NodeProto:
        nodes, output = self.body(f"{out}_p", depth)
        rows = [node("Add", [f"{out}_r", f"{out}_s"], f"{out}_p")]
        body = graph(
            [*rows, *nodes],
            [value(output, [2, 4])],
            [value(f"{out}_s", [2, 4]), value(f"{out}_r", [4])],
        )
        return node("Scan", [last, "rows"], out, body=body, num_scan_inputs=1)


setattr(Builder, "if", Builder.if_)


@st.composite
def models(draw: Any) -> onnx.ModelProto:
    """Draw a model with bodies up to two deep."""
    builder = Builder(draw)
    nodes, last = builder.chain("x", 2)
    extra, last = builder.step(draw(st.sampled_from(["If", "Loop", "Scan"])), last, "x", 2)
    end, _ = builder.step("matmul", last, "x", 0)
    end[-1].output[0] = "y"
    builder.weights["rows"] = noise(2, 4, seed=9) / 4
    model = build([*nodes, *extra, *end], {"x": [2, 4]}, {"y": [2, 4]}, builder.weights)
    model.graph.input.extend([value("c", [], TensorProto.BOOL), value("d", [], TensorProto.BOOL)])
    return model


@settings(max_examples=40, deadline=None)
@given(models())
def test_any_model_with_bodies_comes_back_by_stripping_and_computes_nearly_the_same(
    model: onnx.ModelProto,
) -> None:
    recovery = qdq.Recovery(guard=False)
    result = qdq.quantize(model, samples(model), method="max", recovery=recovery)
    assert result.findings == ()
    onnx.checker.check_model(result.model, full_check=True)
    assert canonical_bytes(strip(result.model)) == canonical_bytes(model)
    for feed in samples(model):
        bounds = rounding_bounds(result.model, feed)
        for expected, actual, bound in zip(
            run(model, feed), run(result.model, feed), bounds, strict=True
        ):
            assert np.abs(actual - expected).max() <= bound
    weighted = sum(op == "MatMul" for op in every_op(model.graph))
    assert len([p for p in result.plan.placements if p.quantizer.axis is not None]) == weighted


@pytest.mark.parametrize("build_model", [looping, branching, scanning])
def test_scales_of_half_the_size_exceed_the_bound_of_rounding(
    build_model: Callable[[], onnx.ModelProto],
) -> None:
    model = build_model()
    result = qdq.quantize(model, samples(model), method="max").model
    feed = samples(model)[0]
    expected, bounds = run(model, feed), rounding_bounds(result, feed)
    assert all(
        np.abs(a - e).max() <= b
        for a, e, b in zip(run(result, feed), expected, bounds, strict=True)
    )
    for tensor in result.graph.initializer:
        if tensor.name.endswith("_scale"):
            halved = numpy_helper.to_array(tensor) / np.float32(2)
            tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
    bounds = rounding_bounds(result, feed)
    assert any(
        np.abs(a - e).max() > b for a, e, b in zip(run(result, feed), expected, bounds, strict=True)
    )


def test_a_loop_that_doubles_its_state_amplifies_its_scales_and_the_bound_follows() -> None:
    def doubling(turns: int) -> float:
        turn = [
            node("MatMul", ["state", "w"], "p", name="inside"),
            node("Mul", ["p", "two"], "twice"),
            node("Tanh", ["twice"], "next"),
        ]
        model = looping(turn, turns=turns)
        model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
        feed = {"x": samples(model)[0]["x"] / np.float32(50)}
        result = qdq.quantize(model, [feed], method="max").model
        (bound,) = rounding_bounds(result, feed)
        assert np.abs(run(result, feed)[0] - run(model, feed)[0]).max() <= bound
        return float(bound)

    assert doubling(6) > 4 * doubling(1)


def every_op(body: onnx.GraphProto) -> list[str]:
    """Return the operators of a graph and of the bodies in it."""
    inner = [op for n in body.node for a in n.attribute if a.HasField("g") for op in every_op(a.g)]
    return ops(body) + inner


COMPILED = {
    "if": build_if(branch("then", "w"), branch("else", "v")),
    "loop": looping(),
    "scan": scanning(),
}


@pytest.mark.parametrize("target", ["rtx:sm86", "rtx:sm120"])
@pytest.mark.parametrize("kind", sorted(COMPILED))
def test_the_compiler_runs_the_layers_of_bodies_in_int8(kind: str, target: str) -> None:
    result = quantized(COMPILED[kind])
    (report,) = qdq.validate(
        result.source, result.model, targets=[qdq.parse_target(target)]
    ).engines
    assert report.failure == ""
    assert report.broken_promises == ()
    inside = [v for v in report.layers if "/" in v.node]
    assert inside
    assert all(v.promised and v.int8 for v in inside), inside
