"""FP8 as a format: its grid, its scales, the models that hold it, and what the compiler makes of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

import qdq
from qdq.calibration.weight_scales import least_shift_amax
from qdq.checking.checker import check
from qdq.graph.index import GraphIndex
from qdq.graph.operands import channel_amax
from qdq.graph.source import Source, canonical_bytes
from qdq.planning.decisions import INCOMPLETE
from qdq.planning.plan_file import plan_to_yaml, read_plan
from qdq.quantizer import E4M3, ELEMENT_TYPES, FORMATS, INT8
from qdq.ranges.histogram import Histogram
from qdq.rules.rule import Rule, RuleSet, Where, make_rule_set
from qdq.rules.rule_files import load_rules
from qdq.runtime.session import exact_options, open_session
from qdq.target import parse_target
from qdq.validation.validator import validate
from tests.support.cli_runner import run as cli
from tests.support.graphs import CALIBRATION, Array, build, convolution, node, noise, random_feed
from tests.support.paths import NETWORKS

FP8 = ELEMENT_TYPES[E4M3]
SM86, SM89 = parse_target("rtx:sm86"), parse_target("rtx:sm89")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


def fp8_rules() -> RuleSet:
    """Return the shipped FP8 set."""
    return load_rules(["tensorrt-fp8"])


def quantized(model: Any, data: Any = "noise", **options: Any) -> qdq.Quantized:
    """Return a model in FP8."""
    return qdq.quantize(model, data, rules=fp8_rules(), targets=[SM89], **options)


def runtime_round(values: Array) -> Array:
    """Return what ONNX Runtime makes of float32 values in E4M3 with scale 1."""
    text = """<ir_version: 10, opset_import: ["" : 19]> g (float[N] x) => (float[N] y) <float s = {1}, float8e4m3fn z = {0}>
              { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }"""
    session = ort.InferenceSession(
        onnx.parser.parse_model(text).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (rounded,) = session.run(None, {"x": values})
    return np.asarray(rounded)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays.arrays(np.float32, 64, elements=st.floats(-1000, 1000, width=32)))
def test_rounding_to_fp8_is_that_of_onnx_runtime(values: Array) -> None:
    np.testing.assert_array_equal(FP8.round(values), runtime_round(values))


def test_ties_denormals_and_the_ends_of_fp8_are_those_of_onnx_runtime() -> None:
    grid = FP8.grid().astype(np.float32)
    values = np.concatenate(
        [grid, -grid, (grid[1:] + grid[:-1]) / 2, np.float32([2**-10, 2**-11, 463, 464, 465, 1e30])]
    )
    np.testing.assert_array_equal(FP8.round(values), runtime_round(values))
    assert (grid[0], grid[1], grid[-1], len(grid)) == (0, 2.0**-9, 448, 127)


@pytest.mark.parametrize("name", [INT8, E4M3])
def test_rounding_moves_no_value_further_than_the_error_that_is_stated(name: str) -> None:
    element = ELEMENT_TYPES[name]
    values = np.linspace(0, element.largest, 100_001)
    moved = np.abs(element.round(values) - values)
    assert (moved <= element.error(values)).all()
    assert moved.max() == pytest.approx(element.error(values).max(), rel=1e-3)
    np.testing.assert_array_equal(element.round(element.grid()), element.grid())


def square_error(values: Array, amax: float) -> float:
    """Return the mean square error of FP8 with a range, in float64."""
    exact = values.astype(np.float64)
    scale = amax / FP8.largest
    return float(np.mean((FP8.round(exact / scale) * scale - exact) ** 2))


@pytest.mark.parametrize("power", [1.0, 3.0], ids=["normal", "heavy tails"])
def test_mse_of_fp8_is_the_least_of_the_full_data_and_may_leave_head_room(power: float) -> None:
    values = np.sign(noise(20_000)) * np.abs(noise(20_000)) ** np.float32(power)
    histogram = Histogram()
    histogram.add(values)
    tried = [square_error(values, histogram.amax * share) for share in np.linspace(1 / 16, 2, 300)]
    got = histogram.least_error(FP8)
    assert square_error(values, got) <= min(tried) * 1.02
    assert 0 < got <= 2 * histogram.amax


def test_fp8_weights_shift_outputs_less_than_with_the_largest_value() -> None:
    weight, mean, variance = noise(8, 32, 9), np.ones(32), np.full(32, 0.1)

    def shift(amax: Array) -> Array:
        scale = amax[:, None, None] / FP8.largest
        return np.asarray(np.abs((FP8.round(weight / scale) * scale - weight).sum(axis=(1, 2))))

    chosen, plain = least_shift_amax(weight, mean, variance, 1, FP8), channel_amax(weight, 0)
    assert shift(chosen).mean() < 0.2 * shift(plain).mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_fp8_pair_has_a_zero_point_of_its_type_and_a_scale_of_the_tensors(dtype: type) -> None:
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = build(
        [node("MatMul", ["x", "w"], "y")],
        {"x": [2, 8]},
        ["y"],
        {"w": noise(8, 4, dtype=dtype)},
        opset=19,
        ir=9,
        dtype=code,
    )
    result = quantized(model, method="max")
    stored = {t.name: t for t in result.model.graph.initializer}
    assert {stored[n].data_type for n in ("x_zero_point", "w_zero_point")} == {
        onnx.TensorProto.FLOAT8E4M3FN
    }
    assert list(stored["w_zero_point"].dims) == [4]
    scale = numpy_helper.to_array(stored["w_scale"])
    assert scale.dtype == dtype
    np.testing.assert_allclose(
        scale, np.abs(numpy_helper.to_array(stored["w"])).max(axis=0) / 448, rtol=1e-3
    )
    onnx.checker.check_model(result.model)


@pytest.mark.parametrize("opset", [11, 13, 18, 19, 21])
def test_a_model_is_raised_to_opset_19_for_fp8_only_and_says_so(opset: int) -> None:
    model = convolution(opset)
    result = quantized(model)
    notes = [note for note in result.plan.notes if "FP8" in note]
    assert notes == (
        [f"opset raised from {max(opset, 13)} to 19, which FP8 Q/DQ needs"] if opset < 19 else []
    )
    assert result.model.opset_import[0].version == max(opset, 19)
    assert qdq.quantize(model, "noise").model.opset_import[0].version == max(opset, 13)


def pooled(opset: int = 13) -> onnx.ModelProto:
    """Return a network whose ReduceMean takes its axes as an attribute, which opset 18 makes an input."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), onnx.helper.make_node("Relu", ["c"], ["r"]),
        onnx.helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0), onnx.helper.make_node("MatMul", ["m", "v"], ["y"]),
    ]  # fmt: skip
    return build(
        nodes,
        {"x": [1, 4, 6, 6]},
        ["y"],
        {"w": noise(8, 4, 3, 3), "v": noise(8, 3, seed=1)},
        opset=opset,
    )


def test_the_float_model_is_raised_alike_wherever_it_is_compared_again(tmp_path: Path) -> None:
    model, out, plan, scales = (
        tmp_path / "f.onnx",
        tmp_path / "q.onnx",
        tmp_path / "p.yaml",
        tmp_path / "s.json",
    )
    onnx.save(pooled(), model)
    fp8 = ("--rules", "tensorrt-fp8", "--target", "rtx:sm89")
    assert cli("plan", model, "-o", plan, *fp8)[0] == 0
    assert "opset raised from 13 to 19, which FP8 Q/DQ needs" in plan.read_text()
    assert (
        cli("calibrate", model, plan, "--data", "noise", "-o", scales)
        == (0, f"wrote {scales}\n", "")
        or scales.exists()
    )
    assert cli("apply", model, plan, scales, "-o", out)[0] == 0
    whole = tmp_path / "whole.onnx"
    assert cli("quantize", model, "-o", whole, "--data", "noise", *fp8)[0] == 0
    assert whole.read_bytes() == out.read_bytes()
    assert cli("validate", model, out, "--data", "noise")[0] == 0
    assert cli("check", out, "--rules", "tensorrt-fp8") == (0, f"{out}: no findings\n", "")
    assert cli("check", out) == (0, f"{out}: no findings\n", "")
    assert "fp8-inputs" in cli("explain", model, "m", *fp8)[1]


@pytest.mark.parametrize("model", [convolution(), pooled()], ids=["convolution", "pooled"])
def test_stripping_an_fp8_model_gives_the_raised_one_back(model: onnx.ModelProto) -> None:
    result = quantized(model)
    assert canonical_bytes(qdq.strip(result.model)) == canonical_bytes(result.source.model)


def test_stored_fp8_weights_are_read_and_become_floats() -> None:
    text = """<ir_version: 10, opset_import: ["" : 19]> g (float[2,4] x) => (float[2,2] y)
              <float s = {0.5}, float8e4m3fn z = {0}, float8e4m3fn w>
              { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  v = DequantizeLinear (w, s, z)  [mm] y = MatMul (d, v) }"""
    model = onnx.parser.parse_model(text.replace(", float8e4m3fn w", ""))
    model.graph.initializer.append(
        onnx.TensorProto(
            name="w",
            data_type=FP8.code,
            dims=[4, 2],
            raw_data=bytes([0x38, 0xB8, 0x40, 0x7E, 0, 1, 0x30, 0x48]),
        )
    )
    (tensor,) = (t for t in qdq.strip(model).graph.initializer)
    assert numpy_helper.to_array(tensor).ravel().tolist() == [
        0.5,
        -0.5,
        1.0,
        224.0,
        0.0,
        2.0**-10,
        0.25,
        2.0,
    ]


def test_onnx_runtime_computes_what_the_graph_spells_behind_relu_and_clip() -> None:
    """ONNX Runtime 1.31 drops a Relu before an FP8 QuantizeLinear and fails at a Clip there, unless it is told not to."""
    for op, inputs in (("Relu", ["x"]), ("Clip", ["x", "low", "high"])):
        weights = {"w": np.eye(4, dtype=np.float32), "low": np.float32(0), "high": np.float32(6)}
        model = build(
            [node(op, inputs, "r"), node("MatMul", ["r", "w"], "y")],
            {"x": [1, 4]},
            ["y"],
            {k: v for k, v in weights.items() if k in ("w", *inputs)},
        )
        after = quantized(model, [{"x": np.float32([[6, 6, 6, 6]])}], method="max").model
        (got,) = open_session(GraphIndex(Source(None, after, "")), [], exact_options()).run(
            ["y"], {"x": np.float32([[-3, -1, 2, 5]])}
        )
        np.testing.assert_allclose(got, [[0, 0, 2, 5]], atol=0.2)


def test_int8_and_fp8_are_not_mixed_in_one_layer() -> None:
    odd = Rule(
        "odd",
        "This weight in FP8.",
        Where(tensor=("w2",)),
        "quantize",
        using="fp8-weight-per-channel",
        beats=("*",),
    )
    base = load_rules()
    plan = qdq.plan(convolution(), rules=make_rule_set(base.names, (*base.rules, odd)))
    assert {p.edge.node for p in plan.placements} == {"a_node"}
    left_float = {str(item.edge): item for item in plan.left_float if item.because == INCOMPLETE}
    assert set(left_float) == {"r -> y_node[0]", "w2 -> y_node[1]"}
    assert (
        left_float["r -> y_node[0]"].reason
        == "A pair here requires one in INT8 on w2 -> y_node[1], which odd quantizes to FP8."
    )


def mixed() -> RuleSet:
    """Return the default set with the second convolution in FP8."""
    base = load_rules()
    formats = {"r": "fp8-activation", "w2": "fp8-weight-per-channel"}
    fp8_rules = [
        Rule(
            f"fp8-{t}", "This layer in FP8.", Where(tensor=(t,)), "quantize", using=f, beats=("*",)
        )
        for t, f in formats.items()
    ]
    return make_rule_set(base.names, (*base.rules, *fp8_rules))


@needs_compiler
def test_a_layer_in_fp8_among_layers_in_int8_keeps_both_promises() -> None:
    result = qdq.quantize(convolution(), "noise", rules=mixed(), targets=[SM89])
    (report,) = validate(convolution(), result.model, targets=[SM89]).engines
    assert {v.node: (v.expected_type, v.int8, v.fp8) for v in report.layers} == {
        "a_node": ("INT8", True, False),
        "y_node": ("FP8", False, True),
    }
    assert report.broken_promises == ()


def test_another_type_than_the_rules_ask_for_is_found() -> None:
    result = qdq.quantize(convolution(), "noise", rules=mixed())
    assert result.findings == ()
    assert [(f.code, f.where) for f in check(result.model, rules=load_rules())] == [
        ("element-type", "r -> y_node[0]"),
        ("element-type", "w2 -> y_node[1]"),
    ]
    assert "int8" in check(result.model, rules=load_rules())[0].problem


@pytest.mark.parametrize("name", ["digits_cnn", "digits_attention"])
def test_the_fixture_networks_keep_their_answers_in_fp8(name: str) -> None:
    result = quantized(NETWORKS / f"{name}.onnx", CALIBRATION)
    accuracy = validate(NETWORKS / f"{name}.onnx", result.model, data=CALIBRATION).accuracy
    assert accuracy is not None
    assert accuracy.outputs[0].snr_db > 25
    assert accuracy.outputs[0].top1_agreement == 1.0


@needs_compiler
@pytest.mark.parametrize("sm", [89, 120])
def test_every_promise_of_fp8_is_kept_from_sm_89_on(sm: int) -> None:
    model, target = NETWORKS / "digits_attention.onnx", parse_target(f"rtx:sm{sm}")
    recovery = qdq.Recovery(guard=False)
    result = qdq.quantize(
        model, CALIBRATION, rules=fp8_rules(), targets=[target], recovery=recovery
    )
    (report,) = validate(model, result.model, targets=[target]).engines
    assert {(v.promised, v.expected_type, v.fp8, v.int8) for v in report.layers} == {
        (True, "FP8", True, False)
    }
    assert (report.broken_promises, report.failure) == ((), "")


@needs_compiler
def test_an_fp8_promise_that_the_engine_does_not_keep_is_broken() -> None:
    rules = [
        Rule(
            "inputs",
            "Quantize.",
            Where(into=("ConvTranspose",), edge=("computed-operand",)),
            "quantize",
            using="fp8-activation",
        ),
        Rule(
            "weights",
            "Quantize.",
            Where(into=("ConvTranspose",), edge=("constant-operand",)),
            "quantize",
            using="fp8-weight-per-tensor",
        ),
    ]
    model = build(
        [node("ConvTranspose", ["x", "u"], "y", name="up")],
        {"x": [1, 16, 8, 8]},
        ["y"],
        {"u": noise(16, 16, 2, 2)},
    )
    result = qdq.quantize(model, "noise", rules=make_rule_set(["own"], rules), targets=[SM89])
    (report,) = validate(model, result.model, targets=[SM89]).engines
    assert str(report.broken_promises[0]).startswith(
        "up [inputs, weights]: the pairs promise FP8, but the engine runs it as deconv Float"
    )


def test_a_target_without_fp8_leaves_nothing_to_quantize() -> None:
    for float_type in ("fp32", "fp16"):
        with pytest.raises(qdq.QdqError, match="the rules tensorrt-fp8 quantize nothing") as error:
            qdq.quantize(
                convolution(), "noise", rules=fp8_rules(), targets=[SM86], float_type=float_type
            )
        message = str(error.value)
        assert "(no-fp8-hardware: Leave everything in float if a target has no FP8" in message
        assert "the model contains HW-specific datatypes: fp8_e4m3" in message
        assert (
            "(kernels/rtx-sm86.yaml, fp8, {operator: Conv, graph: [float32, float16]})" in message
        )


def test_every_format_names_a_type_and_plans_hold_them(tmp_path: Path) -> None:
    assert {form.dtype for form in FORMATS.values()} == set(ELEMENT_TYPES)
    plan = qdq.plan(convolution(), rules=mixed())
    path = tmp_path / "p.yaml"
    path.write_text(plan_to_yaml(plan))
    assert read_plan(path) == plan
    assert {p.quantizer.dtype for p in plan.placements} == {INT8, E4M3}


def test_a_float16_model_in_fp8_runs() -> None:
    model = build(
        [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "y")], {"x": [1, 2, 4, 4]}, ["y"], {"w": noise(2, 2, 3, 3, dtype=np.float16)},
        opset=19, ir=9, dtype=onnx.TensorProto.FLOAT16,
    )  # fmt: skip
    after = quantized(model).model
    feed = random_feed(model)
    session = open_session(GraphIndex(Source(None, after, "")), [], exact_options())
    expected = open_session(GraphIndex(Source(None, model, "")), []).run(["y"], feed)[0]
    np.testing.assert_allclose(session.run(["y"], feed)[0], expected, atol=1.0)
