"""INT4 weights in blocks: their plan, scales and files, and what the compiler makes of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, numpy_helper

import qdq
from qdq.calibration.weight_scales import least_error_amax
from qdq.graph.operands import channel_amax, split_blocks
from qdq.graph.source import canonical_bytes
from qdq.planning.plan_file import plan_to_yaml, read_plan
from qdq.quantizer import ELEMENT_TYPES, FORMATS, INT4, Quantizer
from qdq.rewriting.quantized_weights import store_weights
from qdq.runtime.session import exact_options
from qdq.target import parse_target
from qdq.validation.validator import validate
from tests.support.cli_runner import refused, save
from tests.support.cli_runner import run as cli
from tests.support.graphs import Array, build, node, noise, random_feed, run

SM86 = parse_target("rtx:sm86")
RULES = "tensorrt-int4"
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


def products() -> onnx.ModelProto:
    """Return a MatMul of 256 values, a Relu, a Gemm of 384, and one of 192, without whole blocks."""
    return build(
        [
            node("MatMul", ["x", "a"], "h", "first"),
            node("Relu", ["h"], "r"),
            node("Gemm", ["r", "b", "bias"], "g", "second", transB=1),
            node("MatMul", ["g", "c"], "y", "third"),
        ],
        {"x": [4, 256]},
        {"y": [4, 8]},
        {"a": noise(256, 384), "b": noise(192, 384), "c": noise(192, 8), "bias": noise(192)},
    )


def quantize(data: str | None = None, rules: str = RULES, **options: object) -> qdq.Quantized:
    """Return the products in INT4."""
    return qdq.quantize(products(), data, rules=rules, targets=[SM86], **options)  # type: ignore[arg-type]


def test_weights_alone_need_no_data_and_strip_byte_for_byte() -> None:
    result = quantize()
    assert [str(p.edge) for p in result.plan.placements] == ["a -> first[1]", "b -> second[1]"]
    assert [str(p.quantizer) for p in result.plan.placements] == [
        "int4-weight-block-128(axis=0)",
        "int4-weight-block-128(axis=1)",
    ]
    (left,) = result.plan.left_float
    assert (str(left.edge), left.because) == ("c -> third[1]", "no-partial-blocks")
    assert "opset raised from 17 to 21, which INT4 Q/DQ needs" in result.plan.notes
    assert result.findings == ()
    onnx.checker.check_model(result.model, full_check=True)
    assert canonical_bytes(qdq.strip(result.model)) == canonical_bytes(result.source.model)


def test_smaller_blocks_take_weights_of_fewer_values() -> None:
    result = quantize(rules="tensorrt-int4-block-64")
    assert [p.quantizer.block_size for p in result.plan.placements] == [64, 64, 64]


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = qdq.plan(products(), rules=RULES, targets=[SM86])
    path = tmp_path / "plan.yaml"
    path.write_text(plan_to_yaml(plan))
    assert read_plan(path) == plan
    assert "quantize: int4-weight-block-128, axis: 1" in path.read_text()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("axis: 0", "axis: 1", "the blocks of 'a' are along axis 0. Write 'axis: 0'."),
        ("float: no-partial-blocks", "quantize: int4-weight-block-128, axis: 0",
         "axis 0 of 'c' has no whole blocks of 128."),
    ],
)  # fmt: skip
def test_an_edited_plan_must_have_whole_blocks(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    model = save(products(), tmp_path / "model.onnx")
    plan = tmp_path / "plan.yaml"
    assert cli("plan", model, "-o", plan, "--rules", RULES, "--target", "rtx:sm86")[0] == 0
    plan.write_text(plan.read_text().replace(old, new, 1))
    output = tmp_path / "scales.json"
    error = refused(tmp_path, "calibrate", model, plan, "-o", output, "--data", "noise")
    assert problem in error


def test_a_rule_without_whole_blocks_is_refused() -> None:
    rules = qdq.load_rules([RULES])
    kept = [rule for rule in rules.rules if rule.name == "int4-weights"]
    with pytest.raises(qdq.QdqError, match="which has no whole blocks of 128"):
        qdq.plan(products(), rules=type(rules)(rules.names, tuple(kept)))


@pytest.mark.parametrize("rules", [RULES, "tensorrt-int4-block-64"])
@pytest.mark.parametrize("is_stored", [False, True])
def test_both_forms_compute_the_rounded_weights(rules: str, is_stored: bool) -> None:
    result = quantize(rules=rules)
    model = store_weights(result.model) if is_stored else result.model
    rounded = onnx.ModelProto()
    rounded.CopyFrom(result.source.model)
    scales = {(p.tensor, p.quantizer): p.scales for p in result.scales.by_pair}
    for placement in result.plan.placements:
        quantizer = placement.quantizer
        (tensor,) = (t for t in rounded.graph.initializer if t.name == placement.edge.tensor)
        weight = numpy_helper.to_array(tensor)
        scale = np.float32(scales[placement.edge.tensor, quantizer])
        scale = scale.reshape(quantizer.scale_shape(weight.shape))
        scale = scale.repeat(quantizer.block_size, axis=quantizer.axis)
        values = np.clip(np.rint(weight / scale), -8, 7) * scale
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    feed = random_feed(products())
    np.testing.assert_allclose(run(model, feed)[0], run(rounded, feed)[0], rtol=1e-4, atol=1e-2)
    assert qdq.check(model) == ()


def test_stored_integers_take_half_a_byte(tmp_path: Path) -> None:
    result = quantize(store_weights="quantized")
    stored = {t.name: t for t in result.model.graph.initializer}
    assert stored["a_quantized"].data_type == TensorProto.INT4
    assert len(stored["a_quantized"].raw_data) == 256 * 384 // 2
    assert tuple(stored["a_scale"].dims) == (2, 384)
    assert tuple(stored["b_scale"].dims) == (192, 3)
    path = save(result.model, tmp_path / "int4.onnx")
    code, text, _ = cli("strip", path, "-o", tmp_path / "float.onnx")
    assert code == 0
    assert "removed 2 of 2 pairs, stored the dequantized values of 2 of them" in text
    assert cli("explain", path, "first", "--rules", RULES)[0] in (0, 2)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(arrays.arrays(np.float32, (8, 3), elements=st.floats(-9, 9, width=32)), st.booleans())
def test_blocks_are_split_in_the_order_of_their_scales(weight: Array, is_transposed: bool) -> None:
    axis = 1 if is_transposed else 0
    values = weight.T.copy() if is_transposed else weight
    amax = channel_amax(split_blocks(values, axis, 4), 0)
    quantizer = Quantizer("int4-weight-block-64", INT4, axis)
    assert FORMATS[quantizer.name].block_size == 64
    expected = np.abs(weight).reshape(2, 4, 3).max(axis=1)
    shape = (3, 2) if is_transposed else (2, 3)
    np.testing.assert_array_equal(amax.reshape(shape), expected.T if is_transposed else expected)


def test_the_chosen_ranges_make_less_error_than_the_largest_values() -> None:
    rows = noise(64, 128)
    element = ELEMENT_TYPES[INT4]

    def measure(amax: Array) -> float:
        step = amax[:, None] / element.largest
        return float(np.square(element.round(rows / step) * step - rows).sum())

    assert measure(least_error_amax(rows, 0, element)) < 0.9 * measure(channel_amax(rows, 0))


def test_blocks_take_the_range_of_least_error_unless_max_is_requested() -> None:
    weight = numpy_helper.to_array(products().graph.initializer[0])
    rows = split_blocks(weight, 0, 128)
    element = ELEMENT_TYPES[INT4]
    least = least_error_amax(rows, 0, element)
    largest = channel_amax(rows, 0)
    for options, expected in (
        ({}, least),
        ({"weights": "max"}, largest),
        ({"method": "max"}, largest),
    ):
        scales = quantize(**options).scales.by_pair[0].scales
        np.testing.assert_allclose(scales, expected / element.largest, rtol=1e-6)


def test_onnx_runtime_quantizes_blocks_as_the_file_states_them() -> None:
    result = quantize()
    import onnxruntime as ort

    session = ort.InferenceSession(
        result.model.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"]
    )
    feed = random_feed(products())
    (expected,) = run(result.model, feed)
    np.testing.assert_allclose(session.run(None, feed)[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("float_type", ["implied", "fp32"])
def test_turing_is_refused_before_anything_is_built(tmp_path: Path, float_type: str) -> None:
    model = save(products(), tmp_path / "model.onnx")
    arguments = ["-o", tmp_path / "out.onnx", "--rules", RULES, "--target", "rtx:sm75"]
    if float_type == "fp32":
        arguments += ["--float", float_type]
    error = refused(tmp_path, "quantize", model, *arguments)
    assert (
        "the rules tensorrt-int4 quantize nothing in it for rtx:sm75 (no-int4-hardware: Leave "
        "everything in float if a target has no INT4, below SM 8.0. TensorRT-RTX"
    ) in error
    assert "the model contains HW-specific datatypes: int4" in error
    assert "(kernels/rtx-sm75.yaml, int4, {operator: MatMul, graph: float" in error
    fix = "Run 'qdq explain'" if float_type == "fp32" else "Run 'qdq cast' for the model in FP16"
    assert fix in error


def test_the_plan_states_the_row_that_refuses_a_weight() -> None:
    plan = qdq.plan(products(), rules=RULES, targets=["rtx:sm86", "rtx:sm75"])
    assert plan.placements == ()
    for item in plan.left_float:
        assert item.because == "no-int4-hardware"
    assert "on sm75: does not build" in plan.left_float[0].reason
    (explained,) = qdq.explain(products(), plan, RULES, "a")
    assert explained.says == plan.left_float[0].reason


def test_an_odd_number_of_output_channels_stays_in_float_unless_there_is_one_row() -> None:
    for rows, outputs, stays in ((4, 33, True), (4, 34, False), (4, 1, False), (1, 33, False)):
        model = build(
            [node("MatMul", ["x", "w"], "y", "product")],
            {"x": [rows, 256]},
            {"y": [rows, outputs]},
            {"w": noise(256, outputs)},
        )
        plan = qdq.plan(model, rules=RULES, targets=[SM86])
        assert bool(plan.left_float) == stays, (rows, outputs)
        if stays:
            (item,) = plan.left_float
            assert item.because == "no-missing-int4-kernels"
            assert "gemm Float,Float -> Float (kernels/rtx-sm86.yaml, int4, " in item.reason


def test_a_backend_without_int4_rows_leaves_the_choice_to_the_hardware_rule() -> None:
    plan = qdq.plan(products(), rules=RULES, targets=["trt:sm86"])
    assert [str(placement.edge) for placement in plan.placements] == [
        "a -> first[1]",
        "b -> second[1]",
    ]


@needs_compiler
def test_the_engine_keeps_the_weights_in_int4_in_both_forms() -> None:
    result = quantize()
    engines = []
    for model in (result.model, store_weights(result.model)):
        (engine,) = validate(result.source, model, targets=[SM86]).engines
        assert not engine.failure
        verdicts = {layer.node: layer for layer in engine.layers}
        assert [verdicts[name].int4 for name in ("first", "second", "third")] == [True, True, False]
        assert verdicts["first"].expected_type == "INT4"
        assert engine.broken_promises == ()
        engines.append((engine.kernels, engine.bytes))
    assert engines[0] == engines[1]
