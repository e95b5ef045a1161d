"""Quantized models with random damage and foreign habits: every command works or ends in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import backend
import numpy as np
import onnx
import pytest
from backend import DEFECT, Case
from onnx import helper, numpy_helper

import qdq
from qdq.graph.bodies import node_bodies
from tests.support.cli_runner import refused, run, save
from tests.support.graphs import CALIBRATION, value
from tests.support.graphs import build as built
from tests.support.graphs import node as made
from tests.support.mutations import MUTATIONS, mutated
from tests.support.pair_models import branches, small
from tests.support.paths import NETWORKS

Model = onnx.ModelProto
SEEDS, BASES = 36, ("small", "branches", "network", "operators")
COMMANDS = ("check", "strip", "quantize", "diff")


def operators() -> Model:
    """Return QLinearConv and ONNX Runtime's QLinearAdd, its result as floats."""
    nodes = [
        made("QuantizeLinear", ["x", "s", "z"], "q", name="quantize"),
        made("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z", "b"], "c", name="conv"),
        helper.make_node(
            "QLinearAdd",
            ["c", "s", "z", "q", "s", "z", "s", "z"],
            ["a"],
            name="add",
            domain="com.microsoft",
        ),
        made("DequantizeLinear", ["a", "s", "z"], "y", name="dequantize"),
    ]
    weights = {
        "s": np.array(0.5, np.float32),
        "z": np.array(0, np.int8),
        "w": np.ones((3, 3, 1, 1), np.int8),
        "b": np.arange(3, dtype=np.int32),
    }
    return built(
        nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 3, 4, 4]}, weights, domains={"com.microsoft": 1}
    )


@pytest.fixture(scope="module")
def bases() -> dict[str, Model]:
    network = qdq.quantize(NETWORKS / "digits_plain.onnx", CALIBRATION, method="max").model
    return {
        "small": small(x="x_dq", c="c_dq", p="p_dq", weight=("ws", "wz")),
        "branches": branches(True),
        "network": network,
        "operators": operators(),
    }


@pytest.mark.parametrize("base", BASES)
def test_no_mutation_of_a_quantized_model_shows_a_defect(
    tmp_path: Path, bases: dict[str, Model], base: str
) -> None:
    outcomes = []
    for seed in range(SEEDS):
        model, changes = mutated(bases[base], seed, 1 + seed % 3)
        case = Case(
            f"seed {seed}: {', '.join(changes)}", base, save(model, tmp_path / "mutated.onnx")
        )
        outcomes += [backend.run(case, command, tmp_path) for command in COMMANDS]
    assert [f"{o.case.group}: {o.command}: {o.says}" for o in outcomes if o.kind == DEFECT] == []
    assert {o.kind for o in outcomes} >= {"worked", "findings", "refused"}


def test_the_seeds_try_every_mutation(bases: dict[str, Model]) -> None:
    tried = {
        name for seed in range(SEEDS) for name in mutated(bases["small"], seed, 1 + seed % 3)[1]
    }
    assert len(tried) > 0.75 * len(MUTATIONS)


# --- what they found -------------------------------------------------------------------------------------------------


def of_body(model: Model) -> onnx.NodeProto:
    """Return the DequantizeLinear in the branch."""
    return next(
        n
        for n in dict(node_bodies(model.graph.node[1]))["then_branch"].node
        if n.op_type == "DequantizeLinear"
    )


def without_scale(model: Model) -> None:
    del of_body(model).input[1:]


def without_output(model: Model) -> None:
    del of_body(model).output[:]


def unnamed_scale(model: Model) -> None:
    of_body(model).input[1] = ""


def without_values(model: Model) -> None:
    model.graph.initializer[0].ClearField("raw_data")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            without_scale,
            "is damaged: node if.then_branch/r_dq_node (DequantizeLinear) has 1 inputs, but the operator needs 2. Export or download it again.",
        ),
        (
            without_output,
            "is damaged: node if.then_branch/r_dq_node (DequantizeLinear) has 0 outputs, but the operator returns 1. Export or download it again.",
        ),
        (
            unnamed_scale,
            "is damaged: node if.then_branch/r_dq_node (DequantizeLinear) has no name for input 1 (x_scale), which the operator needs. Export",
        ),
        (without_values, "is damaged: weight 's' holds no values. Export or download it again."),
    ],
)
@pytest.mark.parametrize("command", ["check", "strip", "diff"])
def test_damage_in_a_body_is_named(
    tmp_path: Path, change: Callable[[Model], None], says: str, command: str
) -> None:
    model = branches(True)
    change(model)
    path = save(model, tmp_path / "model.onnx")
    more = {"strip": ["-o", tmp_path / "out.onnx"], "diff": [path]}.get(command, [])
    assert f"qdq: {path}: the model {says}" in refused(tmp_path, command, path, *more)


def operand_lost(model: Model) -> None:
    del model.graph.node[2].input[3:]


def result_lost(model: Model) -> None:
    del model.graph.node[2].output[:]


def bias_of_huge_scales(model: Model) -> None:
    replace(model, "s", np.array(3e38, np.float32))


def bias_of_other_scales(model: Model) -> None:
    replace(model, "s2", np.array([0.1, 0.2], np.float32))
    model.graph.node[1].input[4] = "s2"


def replace(model: Model, name: str, array: np.ndarray) -> None:
    """Store an array, in place of another of this name."""
    kept = [t for t in model.graph.initializer if t.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(array, name)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            operand_lost,
            "the file is damaged: node 'add' (QLinearAdd) has 3 inputs and needs 5. Export or download it again.",
        ),
        (
            result_lost,
            "the file is damaged: node 'add' (QLinearAdd) has no output. Export or download it again.",
        ),
        (
            bias_of_huge_scales,
            "node 'conv' (QLinearConv) has a bias that its scales make infinite or NaN. Export the model again.",
        ),
        (
            bias_of_other_scales,
            "node 'conv' (QLinearConv) has 1 and 2 scales for a bias of 3 values. Export the model again.",
        ),
    ],
)
def test_quantized_operators_whose_operands_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[Model], None], says: str
) -> None:
    model = operators()
    change(model)
    path = save(model, tmp_path / "model.onnx")
    assert refused(tmp_path, "strip", path, "-o", tmp_path / "out.onnx") == f"qdq: {path}: {says}\n"


def test_a_constant_that_cannot_be_computed_is_refused_and_its_file_named_once(
    tmp_path: Path,
) -> None:
    model = small(x="x_dq", pairs={"x": ("computed", "z")})
    order = [
        helper.make_node("Constant", [], ["nothing"]),
        helper.make_node("Neg", ["nothing"], ["computed"]),
        *model.graph.node,
    ]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    path = save(model, tmp_path / "model.onnx")
    message = refused(tmp_path, "check", path)
    assert message.startswith("qdq: model.onnx: constant ")
    assert message.endswith(". Export the model with its value stored.\n")


@pytest.mark.parametrize("scale", [3e38, np.inf, 1e-42], ids=["huge", "infinite", "denormal"])
def test_a_scale_far_from_that_of_the_other_half_is_no_defect(tmp_path: Path, scale: float) -> None:
    model = small(x="x_dq")
    replace(model, "far", np.array(scale, np.float32))
    model.graph.node[1].input[1] = "far"
    path = save(model, tmp_path / "model.onnx")
    for command in (
        ["check", path],
        ["strip", path, "-o", tmp_path / "out.onnx"],
        ["diff", path, path],
    ):
        code, _, error = run(*command)
        assert (code in (0, 1), error) == (True, "")


@pytest.mark.parametrize(
    "zero", [np.zeros(3, np.int8), np.zeros(0, np.int8)], ids=["three", "none"]
)
def test_other_numbers_of_zero_points_than_of_scales_are_no_defect(
    tmp_path: Path, zero: np.ndarray
) -> None:
    model = small(x="x_dq", weight=("ws", "odd"))
    replace(model, "odd", zero)
    path = save(model, tmp_path / "model.onnx")
    for command in COMMANDS:
        outcome = backend.run(Case("", "odd", path), command, tmp_path)
        assert (
            outcome.command,
            outcome.kind != DEFECT,
            outcome.says if outcome.kind == DEFECT else "",
        ) == (command, True, "")


def clipped_twice(model: Model, *last: onnx.NodeProto) -> None:
    """Put two Clips of integers between the first Q and DQ."""
    names = ("lower", "upper")
    for name, bound in zip(names, (-100, 100), strict=True):
        replace(model, name, np.array(bound, np.int8))
    clips = [made("Clip", ["x_q", *names], "once"), made("Clip", ["once", *names], "twice")]
    order = [model.graph.node[0], *clips, *list(model.graph.node)[1:], *last]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
    kept[3].input[0] = "twice"
    del model.graph.node[:]
    model.graph.node.extend(kept)


@pytest.mark.parametrize("command", COMMANDS)
def test_integers_that_are_clipped_and_read_by_more_than_a_dq_stay(
    tmp_path: Path, command: str
) -> None:
    model = small(x="x_dq")
    clipped_twice(model, made("Cast", ["once"], "seen", to=onnx.TensorProto.FLOAT))
    model.graph.output.append(
        helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, [1, 3, 4, 4])
    )
    outcome = backend.run(
        Case("", "clips", save(model, tmp_path / "model.onnx")), command, tmp_path
    )
    assert outcome.kind in ("worked", "findings"), outcome.says


def test_a_scale_of_text_is_no_defect(tmp_path: Path) -> None:
    model = small(x="x_dq", pairs={"x": ("text", "z")})
    model.graph.node.insert(0, helper.make_node("Constant", [], ["text"], value_string="a"))
    path = save(model, tmp_path / "model.onnx")
    assert {
        command: backend.run(Case("", "text", path), command, tmp_path).kind for command in COMMANDS
    } == {
        "check": "findings",
        "strip": "worked",
        "quantize": "worked",
        "diff": "worked",
    }


def test_a_half_of_another_domain_without_a_scale_is_refused(tmp_path: Path) -> None:
    model = small(x="x_dq")
    model.graph.node[1].domain = "com.microsoft"
    del model.graph.node[1].input[1:]
    path = save(model, tmp_path / "model.onnx")
    says = "the file is damaged: node 'x_dq_node' (DequantizeLinear) has no scale. Export or download it again."
    assert refused(tmp_path, "strip", path, "-o", tmp_path / "out.onnx") == f"qdq: {path}: {says}\n"


def test_two_pairs_that_need_the_same_newer_opset_are_one_finding(tmp_path: Path) -> None:
    model = small(x="x_dq", p="p_dq", pairs={"x": ("s", "e"), "p": ("s", "e")})
    model.graph.initializer.append(
        onnx.TensorProto(name="e", data_type=onnx.TensorProto.FLOAT8E4M3FN, raw_data=b"\0")
    )
    alone = [helper.make_node("QuantizeLinear", ["x", "s", "e"], ["half"], name="half")]
    model.graph.node.extend(alone)
    model.graph.output.append(
        helper.make_tensor_value_info("half", onnx.TensorProto.FLOAT8E4M3FN, [1, 3, 4, 4])
    )
    code, out, error = run("check", save(model, tmp_path / "model.onnx"))
    assert (code, error) == (1, "")
    assert out.count("; FLOAT8E4M3FN needs 19") == 1


def branching(*order: str) -> Model:
    """Return an If whose one branch has a Relu, a Neg and a Q and DQ behind them in some order."""
    by_name = {
        "relu": made("Relu", ["x"], "r", name="relu"),
        "neg": made("Neg", ["r"], "n", name="neg"),
        "circle": made("Relu", ["n"], "r", name="relu"),
        "q": made("QuantizeLinear", ["n", "s", "z"], "q", name="q"),
        "dq": made("DequantizeLinear", ["q", "s", "z"], "a", name="dq"),
    }
    then = helper.make_graph([by_name[name] for name in order], "then", [], [value("a", [1, 3])])
    other = helper.make_graph([made("Neg", ["x"], "b")], "other", [], [value("b", [1, 3])])
    choice = [made("If", ["c"], "y", name="if", then_branch=then, else_branch=other)]
    weights = {"s": np.array(0.5, np.float32), "z": np.array(0, np.int8), "c": np.array(True)}
    return built(choice, {"x": [1, 3]}, {"y": [1, 3]}, weights)


def test_nodes_of_a_body_are_put_in_order() -> None:
    good, bad = branching("relu", "neg", "q", "dq"), branching("dq", "q", "neg", "relu")
    assert qdq.load(bad).notes == ("nodes put in the order that ONNX asks for",)
    assert not qdq.diff(good, bad)
    assert [f.code for f in qdq.check(bad)] == [f.code for f in qdq.check(good)]


def test_nodes_of_a_body_that_need_each_other_are_refused(tmp_path: Path) -> None:
    path = save(branching("circle", "neg", "q", "dq"), tmp_path / "model.onnx")
    for command in (["check", path], ["diff", path, path], ["plan", path]):
        assert refused(tmp_path, *command).endswith(
            "needs its own result. Export or download it again.\n"
        )
