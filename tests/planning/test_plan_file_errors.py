"""Plans and scales that are damaged, edited or another model's, and models that do not belong together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.support.cli_runner import refused, run, samples, save, tiny_model

Edit = Callable[[Any], object]


class Bench:
    """A folder with a tiny model, its plan, its scales and its quantized model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.plan, self.scales = (
            save(tiny_model(), folder / "model.onnx"),
            folder / "plan.yaml",
            folder / "scales.json",
        )
        self.quantized, self.out = folder / "quantized.onnx", folder / "out"
        for argv in (
            ["plan", self.model, "-o", self.plan],
            ["calibrate", self.model, self.plan, "--data", "noise", "-o", self.scales],
            ["apply", self.model, self.plan, self.scales, "-o", self.quantized],
        ):
            assert run(*argv)[0] == 0

    def calibrate(self, **other: Path) -> str:
        """Return the refusal of `qdq calibrate` with another model or plan."""
        return refused(
            self.folder,
            "calibrate",
            other.get("model", self.model),
            other.get("plan", self.plan),
            "--data",
            "noise",
            "-o",
            self.out,
        )

    def apply(self, **other: Path) -> str:
        """Return the refusal of `qdq apply` with another model, plan or scales."""
        paths = (
            other.get("model", self.model),
            other.get("plan", self.plan),
            other.get("scales", self.scales),
        )
        return refused(self.folder, "apply", *paths, "-o", self.out)

    def validate(
        self, *more: object, model: Path | None = None, quantized: Path | None = None
    ) -> str:
        """Return the refusal of `qdq validate` with other models."""
        return refused(
            self.folder, "validate", model or self.model, quantized or self.quantized, *more
        )

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file into the folder."""
        (self.folder / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
        return self.folder / name

    def edited_plan(self, old: str, new: str) -> Path:
        """Write the plan with the one place where it says `old` saying `new`."""
        text = self.plan.read_text()
        assert text.count(old) == 1, old
        return self.write("edited.yaml", text.replace(old, new))

    def edited_scales(self, edit: Edit) -> Path:
        """Write the scales with a change."""
        content = json.loads(self.scales.read_text())
        edit(content)
        return self.write("edited.json", json.dumps(content))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Return a bench in the test's own folder."""
    return Bench(tmp_path)


def other_model(folder: Path) -> Path:
    """Write the tiny model with one weight changed."""
    model = tiny_model()
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[::-1]
    return save(model, folder / "other.onnx")


NO_PLANS = {
    "empty": "",
    "text": "hello\n",
    "list": "[1, 2]\n",
    "mapping": "a: b\n",
    "other-version": "qdq_plan: 1\n",
    "two-documents": "qdq_plan: 2\n---\nqdq_plan: 2\n",
    "alias": "qdq_plan: &a 2\nmodel: *a\n",
    "open-bracket": "a: [\n",
    "no-such-date": "a: 2024-99-99\n",
    "python-object": "!!python/object:os.system {}\n",
    "PNG": b"\x89PNG\r\n\x1a\n\x00",
    "UTF-16": b"\xff\xfea\x00",
}


@pytest.mark.parametrize("content", NO_PLANS.values(), ids=NO_PLANS)
@pytest.mark.parametrize("command", ["calibrate", "apply"])
def test_a_file_that_is_no_plan_is_named(bench: Bench, command: str, content: str | bytes) -> None:
    path = bench.write("bad.yaml", content)

    message = bench.calibrate(plan=path) if command == "calibrate" else bench.apply(plan=path)

    assert message.startswith(f"qdq: {path}: the file is not a plan that qdq can read: ")
    assert message.endswith(". Make one with 'qdq plan'.\n")


NO_SCALES = {
    "empty": "",
    "text": "hello\n",
    "list": "[]",
    "mapping": "{}",
    "plan-only": '{"plan": "x"}',
    "PNG": b"\x89PNG",
    "UTF-16": b"\xff\xfe{\x00",
    "no-UTF-8": b'{"plan": "\xff"}',
}


@pytest.mark.parametrize("content", NO_SCALES.values(), ids=NO_SCALES)
def test_a_file_that_holds_no_scales_is_named(bench: Bench, content: str | bytes) -> None:
    path = bench.write("bad.json", content)

    message = bench.apply(scales=path)

    assert message.startswith(f"qdq: {path}: the file is not a scales file that qdq can read: ")
    assert message.endswith(". Write one with 'qdq calibrate'.\n")


def test_model_plan_and_scales_in_the_wrong_order_are_told_apart(bench: Bench) -> None:
    assert f"qdq: {bench.scales}: the file is not a plan" in bench.apply(
        plan=bench.scales, scales=bench.plan
    )
    assert f"qdq: {bench.model}: the file is not a plan" in bench.calibrate(plan=bench.model)
    assert f"qdq: {bench.plan}: the file is not an ONNX" in bench.calibrate(model=bench.plan)


@pytest.mark.parametrize(
    ("name", "problem"), [("gone", "No such file or directory"), (".", "Is a directory")]
)
def test_a_plan_or_scales_that_cannot_be_read_are_named_once(
    bench: Bench, name: str, problem: str
) -> None:
    path = bench.folder / name

    assert (
        bench.calibrate(plan=path)
        == f"qdq: {path}: the file cannot be read: {problem}. Check the path.\n"
    )
    assert (
        bench.apply(scales=path)
        == f"qdq: {path}: the file cannot be read: {problem}. Check the path.\n"
    )


def test_a_plan_of_another_model_is_refused_with_both_digests(bench: Bench) -> None:
    other = other_model(bench.folder)
    problem = r"the plan is for model.onnx with digest [0-9a-f]{12}, but other.onnx has [0-9a-f]{12}. Make the plan again\.\n"

    assert re.fullmatch(rf"qdq: {bench.plan}: {problem}", bench.calibrate(model=other))
    assert re.fullmatch(rf"qdq: {bench.plan}: {problem}", bench.apply(model=other))


def test_scales_of_another_plan_are_refused(bench: Bench) -> None:
    other = bench.folder / "other.yaml"
    assert run("plan", bench.model, "--leave-float", "gemm", "-o", other)[0] == 0

    assert (
        bench.apply(plan=other)
        == f"qdq: {other}, {bench.scales}: the scales were computed for another plan. Calibrate again with this one.\n"
    )


def setting(*path: str | int, value: object) -> Edit:
    """Return the edit that sets one entry."""

    def edit(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return edit


X = "{slot: 0, tensor: x, quantize: int8-activation, because: weighted-inputs}"
W = "{slot: 1, tensor: conv.weight, quantize: int8-weight-per-channel, axis: 0, because: weights-per-channel}"
RELU = "{slot: 0, tensor: c, float: no-weighted-outputs}"

#: What is replaced, by what, a text of the line that the message names, and what it says.
EDITS = {
    "node": ("- node: conv", "- node: cnov", "cnov", "model.onnx has no node 'cnov'. Did you mean 'conv'?"),
    "operator": ("op: Conv", "op: Gemm", "node: conv", "node 'conv' of model.onnx is a Conv, not a Gemm"),
    "tensor": (X, X.replace("tensor: x", "tensor: y"), "tensor: y", "slot 0 of 'conv' reads 'x', not 'y'"),
    "float-tensor": (RELU, RELU.replace("tensor: c", "tensor: y"), "tensor: y", "slot 0 of 'relu' reads 'c', not 'y'"),
    "no-slot": (X, X.replace("slot: 0", "slot: 7"), "slot: 7", "Conv 'conv' has 3 inputs, so no slot 7"),
    "slot-below-0": (X, X.replace("slot: 0", "slot: -1"), "slot: -1", "'slot' is '-1'. Write a whole number, at least 0."),
    "slot-word": (X, X.replace("slot: 0", "slot: first"), "slot: first", "'slot' is 'first'. Write a whole number"),
    "format": (X, X.replace("int8-activation", "int4"), "int4", "'quantize' is 'int4'; it must be one of int8-activation"),
    "weight-format-on-computed": (
        X, X.replace("int8-activation", "int8-weight-per-tensor"), "slot: 0, tensor: x",
        "int8-weight-per-tensor on x -> conv[0]: 'x' is computed. A weight format needs a constant.",
    ),
    "axis-of-activation": (X, X.replace("int8-activation", "int8-activation, axis: 1"), "axis: 1", "this format has one scale and no axis. Remove 'axis'."),
    "other-axis": (W, W.replace("axis: 0", "axis: 4"), "axis: 4", "the output channels of 'conv.weight' are on axis 0. Write 'axis: 0'."),
    "no-axis": (W, W.replace("axis: 0, ", ""), "conv.weight", "the output channels of 'conv.weight' are on axis 0. Write 'axis: 0'."),
    "repeated": (X, f"{X}\n  - {X.replace('weighted-inputs', 'again')}", "again", "edge x -> conv[0] is on line "),
    "undecided": (X, "{slot: 0, tensor: x}", "tensor: x}", "edge x -> conv[0] needs either 'quantize: FORMAT' or 'float: REASON'"),
    "twofold": (X, X.replace("because", "float: me, because"), "float: me", "edge x -> conv[0] needs either 'quantize: FORMAT' or 'float: REASON'"),
    "float-with-axis": (RELU, RELU.replace("float", "axis: 0, float"), "axis: 0, float", "'axis' is allowed with 'quantize' only"),
    "quantize-with-why": (X, X.replace("because", "why: so, because"), "why: so", "'why' is allowed with 'float' only. Remove it."),
    "edge-key": (X, X.replace("because", "becuase"), "becuase", "unknown key 'becuase'. Did you mean 'because'?"),
    "edge-text": (X, "conv", "", "edited.yaml:16: 'edges' must hold mappings with slot, tensor, not 'conv'"),
    "half-quantized": (
        X, "{slot: 0, tensor: x, float: me}", "conv.weight",
        "a pair on conv.weight -> conv[1] has only costs unless x -> conv[0] has one of the same type. TensorRT runs a layer",
    ),
    "half-dropped": (f"  - {W}\n", "", X, "a pair on x -> conv[0] has only costs unless conv.weight -> conv[1] has one of the same type"),
    "layer-key": ("- node: conv", "- name: conv\n  node: conv", "name: conv", "unknown key 'name'"),
    "no-edges": ("- node: conv\n", "- node: nowhere\n- node: conv\n", "nowhere", "the key 'edges' is missing"),
    "group-tensor": (
        "scale_groups: []", "scale_groups:\n- tensors: [x, ff]", "tensors: [x, ff]",
        "the scale group names 'ff', which is no tensor of model.onnx. Did you mean 'f'?",
    ),
    "group-of-floats": ("scale_groups: []", "scale_groups:\n- tensors: [x, y]", "tensors: [x, y]", "the scale group names 'y', which the plan does not quantize"),
    "group-ratio": ("scale_groups: []", "scale_groups:\n- tensors: [x]\n  ratio_at_most: ten", "ten", "'ratio_at_most' is 'ten'. Write a number above 0."),
    "group-ratio-below-0": ("scale_groups: []", "scale_groups:\n- tensors: [x]\n  ratio_at_most: -1", "-1", "'ratio_at_most' is '-1'. Write a number"),
    "target": ("- trt:sm80", "- rtx:sm90", "targets:", "unknown target 'rtx:sm90'"),
    "float-type": ("layers:\n", "float_type: fp8\nlayers:\n", "float_type", "'float_type' is 'fp8'; it must be one of fp16, bf16"),
    "kept-without-type": ("scale_groups: []", "keep_fp32:\n- node: relu", "keep_fp32", "'keep_fp32' needs 'float_type'"),
    "kept-node": (
        "layers:\n", "float_type: fp16\nkeep_fp32:\n- node: rleu\nlayers:\n", "node: rleu",
        "model.onnx has no node 'rleu'. Did you mean 'relu'?",
    ),
    "kept-key": ("layers:\n", "float_type: fp16\nkeep_fp32:\n- {nod: relu}\nlayers:\n", "nod: relu", "unknown key 'nod'"),
    "top-key": ("notes: []", "nots: []", "nots", "unknown key 'nots'. Did you mean 'notes'?"),
    "repeated-key": ("notes: []", "notes: []\nmodel: x", "", "not a plan that qdq can read: "),
    "notes-a-mapping": ("notes: []", "notes: {a: b}", "notes", "'notes' must be a text or a list of texts"),
    "reasons-a-list": ("reasons:\n", "reasons: [x]\nmodl:\n", "", "unknown key 'modl'. Did you mean 'model'"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "at", "problem"), EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("command", ["calibrate", "apply"])
def test_an_edit_that_cannot_be_honoured_is_named_with_its_line(
    bench: Bench, command: str, old: str, new: str, at: str, problem: str
) -> None:
    path = bench.edited_plan(old, new)

    message = bench.calibrate(plan=path) if command == "calibrate" else bench.apply(plan=path)

    lines = [i for i, line in enumerate(path.read_text().splitlines(), 1) if at and at in line]
    assert message.startswith(f"qdq: {path}:{lines[-1]}: " if at else f"qdq: {path}:"), message
    assert problem in message


def test_a_plan_of_an_older_layout_says_how_to_get_a_new_one(bench: Bench) -> None:
    message = bench.calibrate(plan=bench.edited_plan("qdq_plan: 2", "qdq_plan: 1"))

    assert message.endswith(
        "not a plan that qdq can read: its layout is version 1, but this qdq reads 2. Make one with 'qdq plan'.\n"
    )


def test_a_plan_without_its_model_is_refused(bench: Bench) -> None:
    assert "edited.yaml:1: the key 'model' is missing" in bench.calibrate(
        plan=bench.edited_plan("model: model.onnx\n", "")
    )


def test_a_digest_that_was_edited_is_another_models(bench: Bench) -> None:
    digest = next(
        line for line in bench.plan.read_text().splitlines() if line.startswith("digest: ")
    )

    assert (
        "the plan is for model.onnx with digest 000000000000, but model.onnx has"
        in bench.calibrate(plan=bench.edited_plan(digest, f"digest: '{'0' * 64}'"))
    )


def test_integers_take_no_format(bench: Bench) -> None:
    model = tiny_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("j", onnx.TensorProto.INT64, ["n"])
    )
    model.graph.node.append(onnx.helper.make_node("Abs", ["i"], ["j"], name="abs"))
    path, plan = save(model, bench.folder / "integers.onnx"), bench.folder / "integers.yaml"
    assert run("plan", path, "-o", plan)[0] == 0
    plan.write_text(
        plan.read_text().replace(
            "\nscale_groups",
            "- node: abs\n  edges:\n  - {slot: 0, tensor: i, quantize: int8-activation}\nscale_groups",
        )
    )

    assert "int8-activation on i -> abs[0]: 'i' holds no floats" in bench.calibrate(
        model=path, plan=plan
    )


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (
            setting("by_pair", 0, "scales", value=[]),
            "the scales of tensor 'x' are not 1 positive numbers. Calibrate again.",
        ),
        (
            setting("by_pair", 0, "scales", value=[0.1, 0.2]),
            "the scales of tensor 'x' are not 1 positive numbers",
        ),
        (
            setting("by_pair", 1, "scales", value=[0.1, 0.2]),
            "the scales of tensor 'conv.weight' are not 6 positive numbers",
        ),
        (
            setting("by_pair", 0, "scales", value=[0.0]),
            "the scales of tensor 'x' are not 1 positive numbers",
        ),
        (
            setting("by_pair", 0, "scales", value=[-0.1]),
            "the scales of tensor 'x' are not 1 positive numbers",
        ),
        (
            setting("by_pair", 0, "scales", value=[1e300]),
            "the scales of tensor 'x' are not 1 positive numbers",
        ),
        (setting("by_pair", 0, "scales", value=["0.1"]), "Expected `float`, got `str`"),
        (
            lambda scales: scales["by_pair"].pop(),
            "the scales lack tensor 'gemm.weight' with int8-weight-per-channel(axis=0). Calibrate again.",
        ),
        (
            setting("plan", value="0" * 64),
            "the scales were computed for another plan. Calibrate again with this one.",
        ),
    ],
)
def test_edited_scales_that_the_plan_cannot_use_are_refused(
    bench: Bench, edit: Edit, problem: str
) -> None:
    path = bench.edited_scales(edit)

    message = bench.apply(scales=path)

    assert f"{path}: " in message
    assert problem in message


def test_nothing_to_validate_is_said_so(bench: Bench) -> None:
    assert (
        bench.validate()
        == "qdq: nothing to validate. Pass --data or --images for accuracy, --target for engines, or --layers for an existing engine.\n"
    )


def changed(bench: Bench, change: Callable[[onnx.ModelProto], object]) -> Path:
    """Write a changed tiny model."""
    model = tiny_model()
    change(model)
    return save(model, bench.folder / "changed.onnx")


def test_a_quantized_model_of_another_graph_is_refused(bench: Bench) -> None:
    other = changed(bench, lambda m: setattr(m.graph.node[1], "op_type", "Sigmoid"))

    for more in (["--data", "noise"], ["--target", "rtx:sm86"]):
        assert bench.validate(*more, model=other) == (
            "qdq: quantized.onnx: without its pairs, the graph differs from changed.onnx (4 nodes against 4). Pass the float model it was made from.\n"
        )


def test_float_and_quantized_model_the_wrong_way_round_are_refused(bench: Bench) -> None:
    message = bench.validate("--data", "noise", model=bench.quantized, quantized=bench.model)

    assert message.startswith(
        "qdq: model.onnx: without its pairs, the graph differs from quantized.onnx"
    )


def test_an_input_that_only_the_quantized_model_has_is_named(bench: Bench) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = model.graph.node[0].input[0] = "image"

    message = bench.validate(
        "--data", samples(bench.folder / "samples"), quantized=changed(bench, rename)
    )

    assert (
        message
        == "qdq: changed.onnx: its input 'image' is not an input of model.onnx. Pass the float model it was made from.\n"
    )


def test_an_output_that_only_the_float_model_has_is_named(bench: Bench) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = model.graph.node[3].output[0] = "scores"

    message = bench.validate("--data", "noise", quantized=changed(bench, rename))

    assert (
        message
        == "qdq: changed.onnx: output 'y' is missing or has another rank than in model.onnx. Pass the float model it was made from.\n"
    )


def test_an_unknown_input_in_shape_is_refused_without_building_an_engine(bench: Bench) -> None:
    message = bench.validate("--target", "rtx:sm86", "--shape", "image=1x4x8x8")

    assert message == "qdq: model.onnx: --shapes names no input 'image'; its inputs are x.\n"


@pytest.mark.parametrize("target", ["rtx:sm90", "junk"])
def test_a_target_that_a_models_own_metadata_misspells_is_named_with_the_model(
    bench: Bench, target: str
) -> None:
    model = onnx.load(bench.quantized)
    next(p for p in model.metadata_props if p.key == "qdq.targets").value = target
    path = save(model, bench.folder / "signed.onnx")

    message = refused(bench.folder, "check", path)

    assert message.startswith("qdq: signed.onnx: the metadata entry 'qdq.targets' is invalid: ")
    assert target in message
    assert message.endswith(". Pass --target.\n")
    assert run("check", path, "--target", "trt:sm80")[0] == 0
