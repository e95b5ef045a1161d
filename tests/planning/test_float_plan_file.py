"""Plans with a float type: what they state, and what `qdq apply` makes of them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto

import qdq
from qdq.errors import QdqError
from qdq.graph.loader import load
from qdq.planning.plan_diff import diff_plans
from qdq.planning.plan_file import plan_to_yaml, read_plan
from tests.support.cli_runner import run, save, tiny_model

EXPONENTIAL = """
<ir_version: 10, opset_import: ["": 19]>
g (float[1,8] x) => (float[1,8] y)
<float[8,8] w = {WEIGHTS}>
{ [product] p = MatMul (x, w)
  [exponential] e = Exp (p)
  [scaled] y = Mul (e, p) }
"""


def exponential_model() -> ModelProto:
    """Return a product, and an Exp of it that rules keep in FP32."""
    weights = ", ".join(map(str, range(64)))
    return onnx.parser.parse_model(EXPONENTIAL.replace("WEIGHTS", weights))


def test_a_plan_states_the_nodes_that_rules_keep() -> None:
    decided = qdq.plan(exponential_model(), float_type="fp16")

    assert decided.float_type == "fp16"
    (kept,) = decided.keep_fp32 or ()
    assert (kept.node, kept.because) == ("exponential", "powers-and-exponentials")
    assert kept.reason.startswith("Compute powers, exponentials")


def test_a_plan_in_fp32_states_none() -> None:
    decided = qdq.plan(exponential_model())

    assert not decided.float_type
    assert not decided.keep_fp32


def test_sm75_implies_fp16_as_in_quantize() -> None:
    assert qdq.plan(exponential_model(), targets="rtx:sm75").float_type == "fp16"
    assert not qdq.plan(exponential_model(), targets="rtx:sm75", float_type="fp32").float_type


def test_an_unknown_float_type_is_refused() -> None:
    with pytest.raises(QdqError, match="float_type: 'fp61' is no float type"):
        qdq.plan(exponential_model(), float_type="fp61")


def test_a_file_gives_the_same_plan(tmp_path: Path) -> None:
    decided = qdq.plan(exponential_model(), float_type="fp16")
    path = tmp_path / "plan.yaml"
    path.write_text(plan_to_yaml(decided))

    assert read_plan(path) == decided
    assert "- {node: exponential, because: powers-and-exponentials}" in path.read_text()


def test_apply_writes_the_file_that_quantize_writes(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    plan_path, scales_path = tmp_path / "plan.yaml", tmp_path / "scales.json"
    data = ("--data", "noise")
    run("plan", model, "--float", "fp16", "-o", plan_path)
    run("calibrate", model, plan_path, *data, "-o", scales_path)

    code, _, _ = run("apply", model, plan_path, scales_path, "-o", tmp_path / "applied.onnx")

    assert code == 0
    options = ("--float", "fp16", "--guard", "off", "--recover", "off")
    run("quantize", model, *data, *options, "-o", tmp_path / "quantized.onnx")
    applied = (tmp_path / "applied.onnx").read_bytes()
    assert applied == (tmp_path / "quantized.onnx").read_bytes()
    types = {tensor.data_type for tensor in onnx.load_from_string(applied).graph.initializer}
    assert TensorProto.FLOAT not in types


def test_an_edit_of_keep_fp32_is_executed(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    plan_path, scales_path = tmp_path / "plan.yaml", tmp_path / "scales.json"
    run("plan", model, "--float", "fp16", "-o", plan_path)
    text = plan_path.read_text().replace("keep_fp32: []", "keep_fp32:\n- {node: relu}")
    plan_path.write_text(text)
    run("calibrate", model, plan_path, "--data", "noise", "-o", scales_path)

    code, _, _ = run("apply", model, plan_path, scales_path, "-o", tmp_path / "a.onnx")

    assert code == 0
    code, output, _ = run("explain", tmp_path / "a.onnx", "relu")
    assert "by-hand" in output


def test_a_range_that_fp16_does_not_hold_is_a_warning(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    plan_path, scales_path = tmp_path / "plan.yaml", tmp_path / "scales.json"
    run("plan", model, "--float", "fp16", "-o", plan_path)
    ranges = save_ranges(tmp_path, {"x": 1.0, "f": 70000.0})
    run("calibrate", model, plan_path, "--ranges", ranges, "-o", scales_path)

    code, _, errors = run("apply", model, plan_path, scales_path, "-o", tmp_path / "a.onnx")

    assert code == 0
    assert "warning: 'f' reaches 70000, which FP16 does not hold" in errors


def save_ranges(folder: Path, amax: dict[str, float]) -> Path:
    path = folder / "ranges.yaml"
    lines = [f"{name}: {value}" for name, value in amax.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_diff_names_the_type_and_the_nodes() -> None:
    wide = qdq.plan(exponential_model())
    short = qdq.plan(exponential_model(), float_type="fp16")

    gained, lost = diff_plans(wide, short), diff_plans(short, wide)

    assert ("float_type", "fp32", "fp16") in gained.context
    assert gained.kept_gained == lost.kept_lost == ("exponential",)
    assert not gained.kept_lost


def test_plan_prints_what_stays_in_fp32(tmp_path: Path) -> None:
    model = save(exponential_model(), tmp_path / "m.onnx")

    code, output, _ = run("plan", model, "--float", "fp16")

    assert code == 0
    assert "Computed in FP32\n  exponential  powers-and-exponentials" in output


def test_the_opset_is_that_of_16_bit_scales() -> None:
    model = tiny_model()
    decided = qdq.plan(model, float_type="fp16")
    scales = qdq.calibrate(model, decided, "noise")

    applied = qdq.apply(model, decided, scales)

    assert load(model).model.opset_import[0].version == 17
    assert applied.opset_import[0].version == 19
