"""Plans that people edit, and what changed between two of them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.planning.decisions import ScaleGroup
from qdq.planning.plan_diff import diff_plans
from qdq.planning.plan_document import BY_HAND
from qdq.planning.plan_edits import require_edits
from qdq.planning.plan_file import plan_to_yaml, read_plan, read_plan_file
from qdq.planning.planner import plan
from tests.support.cli_runner import run, save, tiny_model

CONV = """  - {slot: 0, tensor: x, quantize: int8-activation, because: weighted-inputs}
  - {slot: 1, tensor: conv.weight, quantize: int8-weight-per-channel, axis: 0, because: weights-per-channel}
"""
RELU = "  - {slot: 0, tensor: c, float: no-weighted-outputs}\n"


class Edited:
    """The tiny model's plan in a file, to be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.path = (
            folder,
            save(tiny_model(), folder / "model.onnx"),
            folder / "plan.yaml",
        )
        assert run("plan", self.model, "-o", self.path)[0] == 0

    def edit(self, old: str, new: str) -> None:
        """Replace the one place where the plan says `old`."""
        text = self.path.read_text()
        assert text.count(old) == 1, text
        self.path.write_text(text.replace(old, new))

    def pairs(self) -> dict[str, str]:
        """Carry the plan out, and return the rule of each QuantizeLinear by its tensor."""
        scales, out = self.folder / "scales.json", self.folder / "out.onnx"
        assert (
            run("calibrate", self.model, self.path, "--data", "noise", "-o", scales, "--force")[0]
            == 0
        )
        assert run("apply", self.model, self.path, scales, "-o", out, "--force")[0] == 0
        return {
            n.input[0]: n.metadata_props[0].value
            for n in onnx.load(out).graph.node
            if n.op_type == "QuantizeLinear"
        }

    def diff(self, *more: object) -> tuple[int, str]:
        """Return exit code and output of `qdq plan --diff`."""
        code, text, _ = run("plan", self.model, "--diff", self.path, *more)
        return code, text


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    """Return the plan of the tiny model."""
    return Edited(tmp_path)


def test_a_plan_reads_layer_by_layer(edited: Edited) -> None:
    text = edited.path.read_text()

    assert text[text.index("\nlayers:") :] == (
        f"\nlayers:\n- node: conv\n  op: Conv\n  edges:\n{CONV}- node: relu\n  op: Relu\n  edges:\n{RELU}- node: gemm\n  op: Gemm\n  edges:\n"
        "  - {slot: 0, tensor: f, quantize: int8-activation, because: weighted-inputs}\n"
        "  - {slot: 1, tensor: gemm.weight, quantize: int8-weight-per-channel, axis: 0, because: weights-per-channel}\n"
        "\nscale_groups: []\n"
    )
    assert "reasons:\n  no-weighted-outputs: Leave the output of a Conv" in text


def test_an_edge_can_be_removed_moved_to_float_added_and_given_another_format(
    edited: Edited,
) -> None:
    edited.edit(CONV, CONV.replace("quantize: int8-activation, because: weighted-inputs", "float: me, why: too coarse").replace(
        "quantize: int8-weight-per-channel, axis: 0, because: weights-per-channel", "float: me"))  # fmt: skip
    edited.edit(RELU, RELU.replace("float: no-weighted-outputs", "quantize: int8-activation"))
    edited.edit(
        "quantize: int8-weight-per-channel, axis: 0, because: weights-per-channel",
        "quantize: int8-weight-per-tensor, because: [a, b]",
    )

    assert edited.pairs() == {"c": BY_HAND, "f": "weighted-inputs", "gemm.weight": "a, b"}
    left = read_plan(edited.path).left_float
    assert [(item.because, item.reason) for item in left] == [("me", "too coarse"), ("me", "")]
    assert onnx.load(edited.folder / "out.onnx").graph.initializer[-2].dims == []


def test_a_scale_group_can_be_added(edited: Edited) -> None:
    edited.edit(
        "scale_groups: []",
        "scale_groups:\n- tensors: [x, f]\n  because: me\n  ratio_at_most: 1000000",
    )

    edited.pairs()

    by_tensor = {
        pair["tensor"]: pair["scales"]
        for pair in json.loads((edited.folder / "scales.json").read_text())["by_pair"]
    }
    assert by_tensor["x"] == by_tensor["f"]


def test_a_layer_with_both_operands_in_float_or_neither_is_carried_out(edited: Edited) -> None:
    edited.edit(f"- node: conv\n  op: Conv\n  edges:\n{CONV}", "")

    assert set(edited.pairs()) == {"f", "gemm.weight"}


def test_a_plan_is_read_with_the_lines_of_its_edges(edited: Edited) -> None:
    file = read_plan_file(edited.path)
    lines = edited.path.read_text().splitlines()

    for edge, line in file.lines.items():
        assert f"{{slot: {edge.slot}, tensor: {edge.tensor}," in lines[line - 1]
    require_edits(file, GraphIndex(load(edited.model)))


def test_an_unchanged_plan_differs_in_nothing(edited: Edited) -> None:
    assert edited.diff() == (0, f"Changed since {edited.path}\n  no decision changed\n")


def test_a_diff_names_what_was_gained_lost_and_decided_otherwise(edited: Edited) -> None:
    edited.edit(
        CONV, CONV.replace("quantize: int8-activation, because: weighted-inputs", "float: me")
    )
    edited.edit(RELU, RELU.replace("float: no-weighted-outputs", "quantize: int8-activation"))
    edited.edit(
        "tensor: f, quantize: int8-activation, because: weighted-inputs",
        "tensor: f, quantize: int8-activation, because: x",
    )
    edited.edit(
        "tensor: gemm.weight, quantize: int8-weight-per-channel, axis: 0",
        "tensor: gemm.weight, quantize: int8-weight-per-tensor",
    )
    edited.edit("scale_groups: []", "scale_groups:\n- tensors: [c, f]\n  because: me")

    code, text = edited.diff("--target", "rtx:sm86")

    assert (code, text.splitlines()[1:]) == (
        1,
        [
            "  targets: trt:sm80 -> rtx:sm86",
            "  + x -> conv[0]  float by me -> int8-activation by weighted-inputs",
            "  ~ f -> gemm[0]  int8-activation by x -> int8-activation by weighted-inputs",
            "  ~ gemm.weight -> gemm[1]  int8-weight-per-tensor by weights-per-channel -> int8-weight-per-channel(axis=0) by weights-per-channel",
            "  - c -> relu[0]  int8-activation by by-hand -> float by no-weighted-outputs",
            "  - c + f  share-scale  me",
        ],
    )
    content = json.loads(edited.diff("--format", "json")[1])
    assert [change["kind"] for change in content["edges"]] == ["gained", "reason", "format", "lost"]
    assert content["edges"][0]["edge"] == {"graph": "", "node": "conv", "slot": 0, "tensor": "x"}
    assert (content["same_model"], content["groups_gained"], len(content["groups_lost"])) == (
        True,
        [],
        1,
    )


def test_a_diff_across_exports_matches_edges_by_node_and_slot(edited: Edited) -> None:
    model = tiny_model()
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == "f" else name for name in node.input]
        node.output[:] = ["renamed" if name == "f" else name for name in node.output]
    edited.edit("scale_groups: []", "scale_groups:\n- tensors: [f, x]\n  because: me")
    save(model, edited.model)

    code, text = edited.diff()
    assert code == 1
    assert text.splitlines()[1:] == [
        "  the older plan is of another model, by digest",
        "  - renamed + x  share-scale  me",
    ]

    edited.edit("scale_groups:\n- tensors: [f, x]\n  because: me", "scale_groups: []")
    assert edited.diff() == (
        0,
        f"Changed since {edited.path}\n  the older plan is of another model, by digest\n  no decision changed\n",
    )


def test_a_diff_names_edges_of_nodes_that_are_gone_or_new() -> None:
    old, model = plan(tiny_model()), tiny_model()
    next(n for n in model.graph.node if n.name == "gemm").name = "head"

    diff = diff_plans(old, plan(model))

    assert [(change.kind, str(change.edge)) for change in diff.edges] == [
        ("gained", "f -> head[0]"),
        ("gained", "gemm.weight -> head[1]"),
        ("lost", "f -> gemm[0]"),
        ("lost", "gemm.weight -> gemm[1]"),
    ]


def test_a_diff_can_write_the_new_plan_too(edited: Edited) -> None:
    new = edited.folder / "new.yaml"

    assert edited.diff("-o", new)[0] == 0
    assert (
        new.read_text()
        == edited.path.read_text()
        == plan_to_yaml(plan(edited.model), GraphIndex(load(edited.model)))
    )


@pytest.mark.parametrize("ratio", [10, 10.0, 2.5, None])
def test_a_ratio_is_the_same_after_a_round_trip(tmp_path: Path, ratio: float | None) -> None:
    ratio_plan = msgspec.structs.replace(
        plan(tiny_model()), scale_groups=(ScaleGroup(("f", "x"), ("a", "b"), ratio),)
    )
    (tmp_path / "plan.yaml").write_text(plan_to_yaml(ratio_plan))

    assert read_plan(tmp_path / "plan.yaml").key == ratio_plan.key


BODIES = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,4,8,8] x, bool b) => (float[1,4,8,8] y)
<float[4,4,1,1] v>
{ [first] c = Conv (x, v)
  [choice] y = If (b) <
    then_branch = yes () => (float[1,4,8,8] t) <float[4,4,1,1] w> { [inner] t = Conv (c, w) },
    else_branch = no () => (float[1,4,8,8] e) { [plain] e = Relu (c) }> }
"""


def test_edges_of_bodies_have_blocks_of_their_own_that_are_honoured(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(BODIES)
    rng = np.random.default_rng(0)
    for graph in (model.graph, model.graph.node[1].attribute[0].g):
        graph.initializer.append(
            onnx.numpy_helper.from_array(
                rng.standard_normal((4, 4, 1, 1)).astype(np.float32), graph.value_info[0].name
            )
        )
        del graph.value_info[:]
    path, file, scales = (
        save(model, tmp_path / "model.onnx"),
        tmp_path / "plan.yaml",
        tmp_path / "scales.json",
    )
    assert run("plan", path, "-o", file)[0] == 0
    text = file.read_text()
    block = text[
        text.index(
            "- node: inner\n  graph: choice.then_branch\n  op: Conv\n  edges:\n"
        ) : text.index("\nscale_groups")
    ]
    assert text.index("- node: first\n") < text.index(block)

    for old, new, message in (
        (
            "graph: choice.then_branch",
            "graph: choice.then",
            "model.onnx has no body 'choice.then'. Did you mean 'choice.then_branch'",
        ),
        (
            "node: inner",
            "node: iner",
            "choice.then_branch has no node 'iner'. Did you mean 'inner'?",
        ),
        ("slot: 1, tensor: w", "slot: 1, tensor: c", "slot 1 of 'inner' reads 'w', not 'c'"),
        (
            "tensor: w, quantize: int8-weight-per-channel, axis: 0, because: weights-per-channel",
            "tensor: w, float: me",
            "c -> choice.then_branch/inner[0] has only costs",
        ),
    ):
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))
        code, _, err = run("calibrate", path, file, "--data", "noise", "-o", scales)
        assert (code, message in err) == (2, True), err

    file.write_text(text.replace(block, ""))
    assert run("calibrate", path, file, "--data", "noise", "-o", scales)[0] == 0
    assert run("apply", path, file, scales, "-o", tmp_path / "out.onnx")[0] == 0
    inner = (
        next(n for n in onnx.load(tmp_path / "out.onnx").graph.node if n.op_type == "If")
        .attribute[0]
        .g
    )
    assert [n.op_type for n in inner.node] == ["Conv"]
    assert run("plan", path, "--diff", file)[0] == 1
