"""What the TensorRT compiler makes of the plans: promises kept and broken, refusals, and reading the layers back."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import qdq
from qdq.engines.compilable_model import make_compilable
from qdq.engines.engine import EngineLayer, LayerTensor
from qdq.engines.rtx_compiler import build_engine
from qdq.engines.tensorrt import read_engine_information, run_tensorrt
from qdq.errors import CompilerError, UsageError
from qdq.graph.bodies import node_labels
from qdq.target import parse_target
from qdq.validation.engine_report import EngineReport, is_int8_product
from qdq.validation.validator import Thresholds, Validation, misses, validate
from tests.support.cli_runner import run as cli
from tests.support.graphs import CALIBRATION, DIGITS, build, convolution, node, noise
from tests.support.paths import NETWORKS

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)
SM75, SM86, SM120 = (parse_target(f"rtx:sm{sm}") for sm in (75, 86, 120))


def engines(quantized: qdq.Quantized, *targets: qdq.Target, **options: Any) -> Validation:
    """Return the engines of a float model and what was made of it."""
    return validate(quantized.source, quantized.model, targets=targets, **options)


def promise(report: EngineReport) -> dict[str, tuple[bool, bool]]:
    """Return for each weighted node whether INT8 was promised, and whether it came."""
    return {v.node: (v.promised, v.int8) for v in report.layers}


@needs_compiler
@pytest.mark.parametrize("name", DIGITS)
def test_every_promise_of_the_fixture_networks_is_kept(name: str) -> None:
    result = qdq.quantize(NETWORKS / f"{name}.onnx", CALIBRATION, targets=[SM86])
    validation = engines(result, SM86)
    (report,) = validation.engines
    assert (report.target, report.kind, report.failure, report.float_failure) == (
        "rtx:sm86",
        "compiled",
        "",
        "",
    )
    assert report.compiler.startswith("TensorRT-RTX ")
    assert {(v.promised, v.int8) for v in report.layers} == {(True, True)}
    assert len(report.layers) == sum(
        n.op_type in ("Conv", "Gemm", "MatMul") for n in result.source.model.graph.node
    )
    assert report.kernels > 0
    assert report.float_kernels > 0
    assert report.bytes > 0
    assert report.float_bytes > 0
    assert report.broken_promises == ()
    assert misses(validation, Thresholds()) == ()
    assert {v.rule for v in report.layers} >= {"weighted-inputs, weights-per-channel"}


def deconvolution() -> onnx.ModelProto:
    """Return a Conv and a ConvTranspose, which RTX runs in float."""
    return build(
        [node("Conv", ["x", "w"], "c", name="conv"), node("Relu", ["c"], "r", name="relu"), node("ConvTranspose", ["r", "u"], "y", name="up")],
        {"x": [1, 16, 8, 8]}, ["y"], {"w": noise(16, 16, 3, 3), "u": noise(16, 16, 2, 2, seed=1)},
    )  # fmt: skip


@needs_compiler
def test_a_plan_for_another_target_breaks_its_promise_and_misses_names_the_node() -> None:
    result = qdq.quantize(deconvolution(), "noise")
    assert {p.edge.node for p in result.plan.placements} == {"conv", "up"}
    validation = engines(result, SM86)
    (report,) = validation.engines
    assert promise(report) == {"conv": (True, True), "up": (True, False)}
    (broken,) = report.broken_promises
    assert broken.node == "up"
    assert "deconvolution-weights" in broken.rule
    assert str(broken).startswith(
        "up [weighted-inputs, deconvolution-weights]: the pairs promise INT8, but the engine runs it as "
    )
    assert misses(validation, Thresholds()) == (f"rtx:sm86: {broken}",)


@needs_compiler
def test_a_plan_for_the_right_target_promises_nothing_it_cannot_keep() -> None:
    result = qdq.quantize(deconvolution(), "noise", targets=[SM86])
    (report,) = engines(result, SM86).engines
    assert promise(report) == {"conv": (True, True), "up": (False, False)}
    assert report.broken_promises == ()


@needs_compiler
def test_a_refusal_is_reported_for_the_float_and_the_quantized_model() -> None:
    model = build(
        [node("Gemm", ["x", "w"], "y", name="head [a], b")],
        {"x": [4, 32]},
        ["y"],
        {"w": noise(32, 16)},
    )
    validation = engines(qdq.quantize(model, "noise"), SM75)
    (report,) = validation.engines
    assert "head [a], b" in report.failure
    assert "head [a], b" in report.float_failure
    assert "qdq_node_" not in report.failure + report.float_failure
    assert report.layers == ()
    assert report.remark.startswith(
        "rtx:sm75: the compiler refuses this model with or without Q/DQ: "
    )
    assert misses(validation, Thresholds()) == (report.remark,)


@needs_compiler
def test_a_build_after_a_refusal_comes_out_as_before() -> None:
    gemm = build([node("Gemm", ["x", "w"], "y")], {"x": [4, 32]}, ["y"], {"w": noise(32, 16)})
    model = qdq.quantize(convolution(), "noise", targets=[SM86]).model
    first = build_engine(model, SM86)
    assert build_engine(gemm, SM75).failure
    assert build_engine(model, SM86) == first


def half_quantized(slot: int) -> onnx.ModelProto:
    """Return a Conv of which one operand alone has a pair."""
    model = build(
        [node("Conv", ["x", "w"], "y", name="conv")],
        {"x": [1, 16, 8, 8]},
        ["y"],
        {"w": noise(16, 16, 3, 3)},
    )
    after = qdq.quantize(model, "noise").model
    conv = after.graph.node[-1]
    conv.input[slot] = ("x", "w")[slot]
    kept = [
        n
        for n in after.graph.node
        if n.op_type == "Conv" or not n.output[0].startswith(("x", "w")[slot] + "_")
    ]
    del after.graph.node[:]
    after.graph.node.extend(kept)
    onnx.checker.check_model(after)
    return after


@needs_compiler
@pytest.mark.parametrize("slot", [0, 1])
def test_a_half_quantized_convolution_is_neither_promised_nor_int8(slot: int) -> None:
    model = half_quantized(slot)
    (report,) = validate(qdq.strip(model), model, targets=[SM86]).engines
    assert promise(report) == {"conv": (False, False)}
    assert report.broken_promises == ()
    assert [f.code for f in qdq.check(model)] == ["half-quantized"]


def product(axis: int, dtype: Any = np.float32) -> onnx.ModelProto:
    """Return a MatMul with pairs on both operands, the weight's scales along an axis."""
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    model = build(
        [node("MatMul", ["x", "w"], "y", name="fc")],
        {"x": [8, 32]},
        ["y"],
        {"w": noise(32, 32, dtype=dtype)},
        dtype=kind,
    )
    after = qdq.quantize(model, "noise").model
    for item in after.graph.node:
        for attribute in item.attribute:
            if attribute.name == "axis":
                attribute.i = axis
    return after


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "target"),
    [(np.float32, SM86), (np.float16, SM75), (np.float16, SM86), (np.float32, SM120)],
    ids=str,
)
@pytest.mark.parametrize("axis", [0, 1])
def test_weight_scales_along_the_wrong_axis_break_the_promise(
    axis: int, dtype: Any, target: qdq.Target
) -> None:
    model = product(axis, dtype)
    (report,) = validate(qdq.strip(model), model, targets=[target]).engines
    assert report.failure == ""
    assert promise(report) == {"fc": (True, axis == 1)}
    assert len(report.broken_promises) == (axis == 0)


@pytest.mark.parametrize(
    ("name", "int8"),
    [
        ("__myl_CastMulCastCastMulFc_myl0_1", False), ("__myl_CastMulFc_myl0_1", False), ("__myl_MulMinMaxRounCast_myl0_0", False),
        ("__myl_FcMulReluMulMinMaxRounCast_myl0_1", True), ("__myl_MoveConcCorrMulCastReshMove_myl0_1", True), ("__myl_MulSum_myl0_1", False),
        ("__myl_MulMinMaxRounCastCastMulCorr_myl0_0", False), ("fc_myl0_1", True), ("_gemm_mha_v2_myl0_3", True), ("BroadCast", True),
    ],
)  # fmt: skip
def test_a_generated_kernel_that_casts_before_its_product_does_not_multiply_int8(
    name: str, int8: bool
) -> None:
    stored = (LayerTensor("t", (8, 8), "Int8"),)
    layer = EngineLayer(
        name, "runtime_fusion", stored, stored, (LayerTensor("y", (8, 8), "Float"),), ("fc",)
    )
    assert layer.multiplies("Int8") is int8
    assert not layer.multiplies("FP8")
    assert is_int8_product(layer) is int8


@pytest.mark.parametrize(
    ("types", "dtype"),
    [
        ("Half Half Int8 Int8 Int8", "Int8"),
        ("Half Half Half Half Half", "Half"),
        ("Half Half Float Half Half", "Half"),
        ("Int8 Int8 Half", "Int8"),
    ],
)
def test_masks_before_query_key_and_value_do_not_decide_the_type_of_an_attention(
    types: str, dtype: str
) -> None:
    inputs = tuple(LayerTensor("t", (6, 49, 32), name) for name in types.split())
    outputs = (LayerTensor("y", (6, 49, 32), "Int8"),)
    layer = EngineLayer("_gemm_mha_v2_myl0_3", "kgen", inputs, (), outputs, ("mha",))
    assert [name for name in ("Int8", "Half", "Float") if layer.multiplies(name)] == [dtype]


@pytest.mark.parametrize(
    ("name", "int8"),
    [
        ("__myl_MulMinMaxRounCastConcCorr_myl0_0", True),
        ("__myl_MulMinMaxRounCastCastMulCorr_myl0_0", False),
        ("__myl_CastMulMinMaxRounCorr_myl0_0", False),
        ("c", False),
    ],
)
def test_a_generated_kernel_that_quantizes_its_input_itself_multiplies_int8(
    name: str, int8: bool
) -> None:
    read, weight = (
        (LayerTensor("x", (1, 2, 1, 1), "Float"),),
        (LayerTensor("w", (4, 2, 1, 1), "Int8"),),
    )
    assert EngineLayer(name, "kgen", read, weight, read, ("c",)).multiplies("Int8") is int8


@needs_compiler
def test_promises_hold_for_weights_of_every_form() -> None:
    square, flat = noise(16, 16, 3, 3), noise(16, 16)
    nodes = [
        node("Constant", [], "w1", value=numpy_helper.from_array(square)), node("Conv", ["x", "w1"], "c1"),
        node("Identity", ["s"], "w2"), node("Conv", ["c1", "w2"], "c2"), node("Transpose", ["s"], "w3", perm=[1, 0, 2, 3]), node("Conv", ["c2", "w3"], "c3"),
        node("Mul", ["s", "two"], "w4"), node("Conv", ["c3", "w4"], "c4"), node("GlobalAveragePool", ["c4"], "p"), node("Flatten", ["p"], "f"),
        node("Transpose", ["m"], "w5", perm=[1, 0]), node("MatMul", ["f", "w5"], "g1"),
        node("Gemm", ["g1", "m"], "g2", transB=1), node("Gemm", ["g2", "m"], "y"),
    ]  # fmt: skip
    model = build(
        nodes,
        {"x": [1, 16, 12, 12]},
        ["y"],
        {"s": square, "m": flat, "two": np.array(2, np.float32)},
    )
    (report,) = engines(qdq.quantize(model, "noise", targets=[SM86]), SM86).engines
    assert promise(report) == {
        f"{name}_node": (True, True) for name in ("c1", "c2", "c3", "c4", "g1", "g2", "y")
    }


@needs_compiler
def test_promises_hold_in_half_precision() -> None:
    nodes = [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "w"], "y")]
    model = build(
        nodes,
        {"x": [1, 16, 8, 8]},
        ["y"],
        {"w": noise(16, 16, 3, 3, dtype=np.float16)},
        dtype=TensorProto.FLOAT16,
    )
    (report,) = engines(qdq.quantize(model, "noise", targets=[SM86]), SM86).engines
    assert promise(report) == {"c_node": (True, True), "y_node": (True, True)}


ODD_NAMES = (
    "a], b, Inputs: [c",
    "Übung/слой/層 😀",
    "",
    "qdq_node_1_",
    "Name: x, LayerType: y",
    "tab\tand 'quote'",
)


@needs_compiler
def test_odd_node_names_map_back() -> None:
    names = iter(ODD_NAMES)
    nodes, tensor = [], "x"
    for i, name in enumerate(names):
        nodes += [
            node("Conv", [tensor, f"w{i}"], f"c{i}", name=name),
            node("Relu", [f"c{i}"], f"r{i}", name=""),
        ]
        tensor = f"r{i}"
    model = build(
        nodes,
        {"x": [1, 16, 8, 8]},
        [tensor],
        {f"w{i}": noise(16, 16, 1, 1, seed=i) for i in range(len(ODD_NAMES))},
    )
    (report,) = engines(qdq.quantize(model, "noise", targets=[SM86]), SM86).engines
    labels = [
        label
        for label, n in zip(node_labels(model.graph), model.graph.node, strict=True)
        if n.op_type == "Conv"
    ]
    assert [v.node for v in report.layers] == labels
    assert labels[:2] == list(ODD_NAMES[:2])
    assert {(v.promised, v.int8) for v in report.layers} == {(True, True)}


@needs_compiler
def test_odd_tensor_names_do_not_break_the_reading_of_layers() -> None:
    names = {"x": "in], Outputs: [", "a": "層, Dimensions: [9]", "r": "r ]", "y": "out"}
    model = convolution()
    for item in model.graph.node:
        item.input[:] = [names.get(i, i) for i in item.input]
        item.output[:] = [names.get(o, o) for o in item.output]
    model.graph.input[0].name, model.graph.output[0].name = names["x"], names["y"]
    (report,) = engines(qdq.quantize(model, "noise", targets=[SM86]), SM86).engines
    assert promise(report) == {"a_node": (True, True), "y_node": (True, True)}


@needs_compiler
def test_foreign_models_without_node_names_are_judged_by_position() -> None:
    model = convolution()
    for item in model.graph.node:
        item.name = ""
    after = qdq.quantize(model, "noise", targets=[SM86]).model
    for item in after.graph.node:
        item.name = ""
    (report,) = validate(model, after, targets=[SM86]).engines
    assert promise(report) == {"#0": (True, True), "#2": (True, True)}


@needs_compiler
def test_dynamic_dimensions_take_the_given_shape_else_that_of_the_first_sample_else_one() -> None:
    result = qdq.quantize(convolution(batch="n"), [{"x": noise(4, 3, 6, 6)}], targets=[SM86])
    sizes = []
    for options in ({}, {"data": [{"x": noise(4, 3, 6, 6)}]}, {"shapes": {"x": (8, 3, 6, 6)}}):
        (report,) = engines(result, SM86, **options).engines
        assert report.failure == ""
        sizes.append(report.float_bytes)
    assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(UsageError, match="names no input 'image'; its inputs are x"):
        engines(result, SM86, shapes={"image": (1, 3, 6, 6)})


@needs_compiler
def test_external_data_is_found_by_the_compiler(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(convolution(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    result = qdq.quantize(path, "noise", targets=[SM86])
    out = tmp_path / "int8.onnx"
    qdq.save(result.model, result.source, out)
    (report,) = validate(path, out, targets=[SM86]).engines
    assert promise(report) == {"a_node": (True, True), "y_node": (True, True)}


@needs_compiler
def test_validation_from_the_command_line_ends_with_1_for_a_broken_promise(tmp_path: Path) -> None:
    model, out, report = tmp_path / "f.onnx", tmp_path / "q.onnx", tmp_path / "r.md"
    onnx.save(deconvolution(), model)
    assert cli("quantize", model, "-o", out, "--data", "noise")[0] == 0
    code, text, error = cli(
        "validate", model, out, "--target", "rtx:sm86", "--data", "noise", "--report", report
    )
    assert (code, error) == (1, "")
    assert "broken: up [weighted-inputs, deconvolution-weights]: the pairs promise INT8" in text
    assert "1 of 2" in text
    assert "| rtx:sm86" in report.read_text()
    assert "- broken: up" in report.read_text()


@needs_compiler
def test_quantize_and_validate_in_one_command(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    code, text, error = cli(
        "quantize",
        NETWORKS / "digits_plain.onnx",
        "-o",
        out,
        "--data",
        CALIBRATION,
        "--target",
        "rtx:sm86",
        "--target",
        "rtx:sm120",
        "--validate",
    )
    assert (code, error) == (0, "")
    assert "3 of 3" in text
    assert "rtx:sm120" in text
    assert "top-1 agreement" in text


def test_what_is_compiled_is_a_copy_of_fixed_shape_with_names_of_its_own() -> None:
    model = convolution(batch="n")
    before = model.SerializeToString()
    copy = make_compilable(model, {"x": (5, 3, 6, 6)})
    assert [d.dim_value for d in copy.graph.input[0].type.tensor_type.shape.dim] == [5, 3, 6, 6]
    assert [
        d.dim_value for d in make_compilable(model, {}).graph.input[0].type.tensor_type.shape.dim
    ] == [1, 3, 6, 6]
    assert len({n.name for n in copy.graph.node}) == len(copy.graph.node)
    assert model.SerializeToString() == before


def test_tensorrt_proper_is_built_only_where_it_can_run() -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    result = qdq.quantize(convolution(), "noise")
    (engine,) = engines(result, parse_target("trt")).engines
    assert (engine.kind, engine.milliseconds) == ("predicted", None)
    with pytest.raises(CompilerError, match=r"A trt target needs a GPU and TensorRT"):
        run_tensorrt(qdq.load(convolution()), parse_target("trt"), [])


# --- the engine inspector's JSON, of TensorRT proper -----------------------------------------------------------------

LABELS = ["first], conv", "relu", "übung"]


def described(tensor: str, dims: list[int], kind: str, old: bool) -> dict[str, Any]:
    """Return a tensor as TensorRT 8 (old) or 11 describes it."""
    text = {
        "Int8": "Thirty-two wide channel vectorized row major Int8 format",
        "FP32": "Row major linear FP32",
        "FP16": "Channel major FP16 format where channel % 8 == 0",
    }
    if old:
        return {
            "Name": tensor,
            "Location": "Device",
            "Dimensions": dims,
            "Format/Datatype": text[kind],
        }
    return {"Name": tensor, "Dimensions": dims, "Format": "Row major", "Datatype": kind}


def inspected(old: bool) -> dict[str, Any]:
    """Return an engine of a fused convolution, a float one and a reformat, as the inspector gives it."""
    layers = [
        {
            "Name": "qdq_node_0_ + qdq_node_1_", "LayerType": "CaskConvolution", "Inputs": [described("x", [1, 3, 6, 6], "Int8", old)],
            "Outputs": [described("r", [1, 4, 4, 4], "Int8", old)], "Weights": {"Type": "Int8", "Count": 108}, "Bias": {"Type": "Float", "Count": 4},
        },
        {
            "Name": "fused" if not old else "qdq_node_2_", "LayerType": "CaskConvolution", "Inputs": [described("r", [1, 4, 4, 4], "FP16", old)],
            "Outputs": [described("y", [1, 5, 4, 4], "FP32", old)], "Weights": {"Type": "Half", "Count": 20},
            **({} if old else {"Metadata": "[ONNX Layer: qdq_node_2_]"}),
        },
        {"Name": "Reformatting CopyNode for Output Tensor 0", "LayerType": "Reformat", "Inputs": [described("y", [1, 5, 4, 4], "FP32", old)],
         "Outputs": [described("y", [1, 5, 4, 4], "FP32", old)]},
    ]  # fmt: skip
    return {"Layers": layers, "Bindings": ["x", "y"]} if old else {"Layers": layers}


@pytest.mark.parametrize("old", [True, False], ids=["TensorRT 8", "TensorRT 11"])
def test_the_inspector_is_read_in_its_old_and_its_new_form(old: bool) -> None:
    first, second, reformat = read_engine_information(inspected(old), LABELS)
    assert first.nodes == ("first], conv", "relu")
    assert (second.nodes, reformat.nodes) == (("übung",), ())
    assert first.inputs == (LayerTensor("x", (1, 3, 6, 6), "Int8", "32-wide" if old else "linear"),)
    assert first.constants == (LayerTensor("weights", (108,), "Int8"),)
    assert [t.dtype for t in (*second.inputs, *second.outputs)] == ["Half", "Float"]
    assert is_int8_product(first)
    assert not is_int8_product(second)
    assert first.bytes == 108 + 64 + 108
    assert second.bytes == 2 * 64 + 4 * 80 + 2 * 20


def test_an_inspector_without_details_is_refused() -> None:
    with pytest.raises(CompilerError, match="without detailed profiling verbosity"):
        list(read_engine_information({"Layers": ["conv", "relu"], "Bindings": ["x"]}, LABELS))


def test_only_a_product_of_two_int8_operands_counts_as_int8() -> None:
    def layer(inputs: list[str], constants: list[str]) -> bool:
        content = inspected(True)["Layers"][0]
        content["Inputs"] = [described(f"i{k}", [1], kind, False) for k, kind in enumerate(inputs)]
        content["Weights"] = {"Type": constants[0], "Count": 4} if constants else None
        return is_int8_product(next(iter(read_engine_information({"Layers": [content]}, LABELS))))

    assert layer(["Int8"], ["Int8"])
    assert layer(["Int8", "Int8"], [])
    assert not layer(["Int8"], [])
    assert not layer(["Int8"], ["Float"])
    assert not layer(["FP32"], ["Int8"])
    assert not layer(["Int8", "FP32"], [])


def test_accuracy_alone_builds_no_engine() -> None:
    result = qdq.quantize(convolution(), "noise")
    validation = engines(result, data="noise")
    assert validation.engines == ()
    assert validation.accuracy is not None
    assert validation.accuracy.samples == 8
