"""Predicted engines of TensorRT proper: against what the published ones are known to be, and rule by rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper
from resnet18 import resnet18

import qdq
from qdq.engines.engine import NO_OP, REFORMAT, Engine, EngineLayer
from qdq.engines.prediction.fusion_rules import FUSION_RULES
from qdq.engines.prediction.predictor import predict_engine
from qdq.target import Target
from tests.support.body_models import branching, samples
from tests.support.cli_runner import run, save
from tests.support.graphs import PAIR, build, models, node, noise
from tests.support.mobilenet import Exported, mobilenet

TRT = Target("trt", 80)
INT8, HALF, FLOAT = "Int8", "Half", "Float"


def layer_of(engine: Engine, label: str) -> EngineLayer:
    """Return the one layer that runs a node."""
    (layer,) = [la for la in engine.layers if label in la.nodes and la.kind != REFORMAT]
    return layer


def types(layer: EngineLayer) -> str:
    return "+".join(t.dtype for t in layer.inputs) + " -> " + layer.outputs[0].dtype


def alone(engine: Engine) -> list[str]:
    """Return the names of the Q and DQ that are layers of their own."""
    return [la.name for la in engine.layers if la.fusion_rule.startswith("stand-alone")]


def numbered(op: str, *numbers: int) -> list[str]:
    return [f"{op}_{n}" for n in numbers]


# --- ResNet-18 on an A100, batch 32: what the published engines do, written down from them -----------------------------

PLAIN = "Int8 -> Int8"
QAT = {
    "Conv_9": "Int8 -> Float",
    **dict.fromkeys(numbered("Conv", 22, 47, 72, 108, 133, 169, 194, 230), PLAIN),
    **dict.fromkeys(numbered("Conv", 34, 59, 95, 120, 156, 181, 217, 242), "Int8+Half -> Half"),
    **dict.fromkeys(numbered("Conv", 84, 145, 206), "Int8 -> Half"),
    "Gemm_257": "Int8 -> Float",
}
RESIDUAL = {
    **dict.fromkeys(numbered("Conv", 9, 22, 53, 84, 107, 126, 157, 180, 199, 230, 253, 272), PLAIN),
    **dict.fromkeys(numbered("Conv", 34, 65, 96, 138, 169, 211, 242), "Int8+Int8 -> Int8"),
}
PUBLISHED = {
    "fp32": (dict.fromkeys(numbered("Conv", 0, 3, 8, 13, 15, 19, 24, 26, 30, 35, 37, 41), "Float -> Float"), [], 1),
    "fp16": (
        {**dict.fromkeys(numbered("Conv", 0, 3, 8, 13, 15, 19, 24, 26, 30, 35, 37, 41), "Half -> Half"),
         **dict.fromkeys(numbered("Conv", 5, 10, 16, 21, 27, 32, 38, 43), "Half+Half -> Half")}, [], 2,
    ),
    "qat": (QAT, numbered("QuantizeLinear", 2, 15, 40, 65, 101, 126, 162, 187, 223, 250), 12),
    "qat-residual": (
        {**RESIDUAL, "Conv_284": "Int8+Float -> Float", "Gemm_305": "Int8 -> Float"},
        ["QuantizeLinear_2", "DequantizeLinear_291", "QuantizeLinear_298"], 3,
    ),
    "qat-residual-qgap": ({**RESIDUAL, "Conv_284": "Int8+Int8 -> Int8", "Gemm_311": "Int8 -> Float"}, ["QuantizeLinear_2"], 1),
}  # fmt: skip


@pytest.mark.parametrize("placement", PUBLISHED)
def test_resnet18_is_predicted_as_it_was_built_on_an_a100(placement: str) -> None:
    expected, stand_alone, reformats = PUBLISHED[placement]

    engine = predict_engine(resnet18(placement), TRT, allow_fp16=placement != "fp32")

    assert {name: types(layer_of(engine, name)) for name in expected} == expected
    assert alone(engine) == stand_alone
    assert engine.reformats == reformats


def test_placements_of_resnet18_are_ordered_by_bytes_as_by_measured_time() -> None:
    moved = {p: predict_engine(resnet18(p), TRT, allow_fp16=p != "fp32").bytes for p in PUBLISHED}

    assert sorted(moved, key=moved.__getitem__) == [
        "qat-residual-qgap",
        "qat-residual",
        "fp16",
        "qat",
        "fp32",
    ]


def test_first_convolution_and_pool_run_as_one_layer_only_when_the_pool_is_quantized() -> None:
    pooled, apart = (
        predict_engine(resnet18("qat-residual"), TRT, allow_fp16=True),
        predict_engine(resnet18("qat"), TRT, allow_fp16=True),
    )

    assert layer_of(pooled, "Conv_9").kind == "ConvActPool"
    assert "MaxPool_12" in layer_of(pooled, "Conv_9").nodes
    assert "MaxPool_12" not in layer_of(apart, "Conv_9").nodes


# --- MobileNet-V2 on a TITAN RTX: the counts that are known of the published engines -----------------------------------


@pytest.mark.parametrize(("residual", "layers", "reformats"), [(False, 73, 18), (True, 58, 3)])
def test_mobilenet_has_the_layers_it_was_built_with_on_a_titan_rtx(
    residual: bool, layers: int, reformats: int
) -> None:
    engine = predict_engine(mobilenet(residual), Target("trt", 75), allow_fp16=True)

    depthwise = [la for la in engine.layers if la.kind == "CudaDepthwiseConvolution"]
    assert (len(engine.layers), engine.reformats) == (layers, reformats)
    assert [types(la) for la in depthwise] == [PLAIN] * 17


# --- one rule at a time -----------------------------------------------------------------------------------------------


def finished(
    export: Exported, output: str, shape: tuple[int, ...] = (1, 32, 8, 8), **more: object
) -> onnx.ModelProto:
    return build(export.nodes, {"x": shape}, [output], export.weights, opset=17, **more)  # type: ignore[arg-type]


def convolution(
    export: Exported, x: str, channels: int = 32, group: int = 1, pair: bool = True, kernel: int = 3
) -> str:
    read = export.pair(x) if pair else x
    return export.add(
        "Conv",
        read,
        export.weight(channels, channels // group, kernel, kernel),
        pads=[kernel // 2] * 4,
        group=group,
    )


def silu(export: Exported, x: str) -> str:
    return export.add("Mul", x, export.add("Sigmoid", x))


def predicted(export: Exported, output: str, **more: object) -> Engine:
    return predict_engine(finished(export, output, **more), TRT)  # type: ignore[arg-type]


def kinds(engine: Engine) -> list[str]:
    return [la.fusion_rule for la in engine.layers]


def test_a_sum_whose_other_operand_is_float_keeps_the_fused_convolution_in_float() -> None:
    e = Exported()
    y = convolution(e, e.add("Relu", e.add("Add", convolution(e, "x"), "x")))

    first, second = [la for la in predicted(e, y).layers if la.kind == "CaskConvolution"]

    assert (types(first), first.fusion_rule) == ("Int8+Float -> Float", "residual-float")
    assert types(second) == "Int8 -> Float"


def test_the_later_of_two_convolutions_takes_the_sum() -> None:
    e = Exported()
    long, short = convolution(e, convolution(e, "x")), convolution(e, "x", kernel=1)
    engine = predicted(e, e.add("Add", long, short))

    add = next(n.name for n in e.nodes if n.op_type == "Add")
    assert short.removesuffix(".out") in layer_of(engine, add).nodes
    assert long.removesuffix(".out") not in layer_of(engine, add).nodes


@pytest.mark.parametrize(("group", "fused"), [(1, True), (32, False)], ids=["dense", "depthwise"])
def test_silu_that_is_quantized_runs_in_a_dense_convolution_and_not_in_a_depthwise_one(
    group: int, fused: bool
) -> None:
    e = Exported()
    engine = predicted(e, convolution(e, silu(e, convolution(e, "x", group=group))))

    sigmoid = next(n.name for n in e.nodes if n.op_type == "Sigmoid")
    assert types(layer_of(engine, sigmoid)) == ("Int8 -> Int8" if fused else "Float -> Int8")
    assert ("Conv" in layer_of(engine, sigmoid).name) is fused


def test_a_sum_behind_silu_is_pointwise() -> None:
    e = Exported()
    added = e.add("Add", silu(e, convolution(e, "x")), e.pair("x"))
    engine = predicted(e, convolution(e, added))

    layer = layer_of(engine, added.removesuffix(".out"))
    assert (layer.kind, layer.fusion_rule) == ("PointWiseV2", "quantized-pointwise")
    assert types(layer) == "Float+Int8 -> Int8"


@pytest.mark.parametrize("between", [True, False], ids=["pair between", "no pair between"])
def test_padding_runs_in_the_convolution_unless_a_pair_stands_between(between: bool) -> None:
    e = Exported()
    e.weights["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    padded = e.add("Pad", "x" if between else e.pair("x"), "pads")
    y = e.add("Conv", e.pair(padded) if between else padded, e.weight(32, 32, 3, 3))
    engine = predicted(e, y)

    assert types(layer_of(engine, y.removesuffix(".out"))) == "Int8 -> Float"
    assert ("Pad" in layer_of(engine, y.removesuffix(".out")).name) is not between
    if between:
        assert layer_of(engine, padded.removesuffix(".out")).fusion_rule == "commutes"


@pytest.mark.parametrize(
    ("op", "front", "behind", "expected"),
    [
        ("AveragePool", True, True, ["stand-alone-quantize", "quantized-pool", "float-result"]),
        (
            "AveragePool",
            True,
            False,
            ["stand-alone-quantize", "stand-alone-dequantize", "float-pool"],
        ),
        ("AveragePool", False, True, ["float-pool", "stand-alone-quantize", "float-result"]),
        ("MaxPool", False, True, ["stand-alone-quantize", "commutes", "float-result"]),
        ("MaxPool", True, False, ["stand-alone-quantize", "commutes", "stand-alone-dequantize"]),
        ("MaxPool", False, False, ["moves-float"]),
    ],
)
def test_pools(op: str, front: bool, behind: bool, expected: list[str]) -> None:
    e = Exported()
    y = e.add(op, e.pair("x") if front else "x", kernel_shape=[2, 2], strides=[2, 2])

    assert kinds(predicted(e, convolution(e, y) if behind else y)) == expected


def test_a_quantize_behind_a_concat_moves_onto_its_inputs() -> None:
    e = Exported()
    joined = e.add("Concat", convolution(e, "x"), convolution(e, "x", kernel=1), axis=1)
    y = e.add("Conv", e.pair(joined), e.weight(32, 64, 1, 1))
    engine = predicted(e, y)

    assert [types(la) for la in engine.layers if la.kind == "CaskConvolution"] == [
        PLAIN,
        PLAIN,
        "Int8 -> Float",
    ]
    assert engine.reformats == 1


def test_concat_inputs_with_other_scales_are_quantized_again() -> None:
    e = Exported()
    joined = e.add("Concat", e.pair("x"), convolution(e, "x"), axis=1)
    y = e.add("Conv", e.pair(joined), e.weight(32, 64, 1, 1))

    assert kinds(predicted(e, y)) == [
        "stand-alone-quantize",
        "int8-operands",
        "stand-alone-quantize",
        "float-result",
    ]


def test_tensorflows_layout_moves_int8_through_transposes() -> None:
    e = Exported()
    moved = e.add("Transpose", e.pair("x"), perm=[0, 3, 1, 2])
    e.weights |= {
        "w": np.zeros((3, 3, 32, 16), np.float32),
        "w.scale": np.full(16, 0.1, np.float32),
        "w.zero": np.zeros(16, np.int8),
    }
    w = e.add(
        "DequantizeLinear",
        e.add("QuantizeLinear", "w", "w.scale", "w.zero", axis=3),
        "w.scale",
        "w.zero",
        axis=3,
    )
    y = e.add("Conv", moved, e.add("Transpose", w, perm=[3, 2, 0, 1]))
    engine = predicted(e, y, shape=(1, 8, 8, 32))

    assert kinds(engine) == ["stand-alone-quantize", "commutes", "reformat", "float-result"]
    assert engine.layers[1].kind == "Shuffle"
    assert types(engine.layers[3]) == "Int8 -> Float"


def test_an_int8_graph_input_needs_no_quantize() -> None:
    e = Exported()
    e.weights["scale"] = np.array(0.1, np.float32)
    y = e.add("Conv", e.add("DequantizeLinear", "x", "scale", "zero"), e.weight(32, 32, 1, 1))
    model = build(e.nodes, {"x": [1, 32, 8, 8]}, {y: [1, 32, 8, 8]}, e.weights)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    engine = predict_engine(model, TRT)

    assert kinds(engine) == ["reformat", "float-result"]
    assert types(engine.layers[-1]) == "Int8 -> Float"


def test_a_transformer_block_multiplies_in_int8_and_its_generated_kernels_quantize() -> None:
    e = Exported()
    e.weights |= {"scale": np.ones(32, np.float32), "bias": np.zeros(32, np.float32)}
    normal = e.add("LayerNormalization", "x", "scale", "bias")
    weights = [e.add("Transpose", e.weight(32, 32), perm=[1, 0]) for _ in range(3)]
    q, k, v = (e.add("Add", e.add("MatMul", e.pair(normal), w), "bias") for w in weights)
    scores = e.add(
        "Softmax", e.add("MatMul", e.pair(q), e.add("Transpose", e.pair(k), perm=[0, 2, 1]))
    )
    mixed = e.add("MatMul", e.pair(scores), e.pair(v))
    engine = predicted(e, e.add("Add", mixed, "x"), shape=(1, 16, 32))

    products = [la for la in engine.layers if la.kind == "MatrixMultiply"]
    assert [types(la) for la in products] == [PLAIN] * 3 + ["Int8+Int8 -> Float"] * 2
    assert alone(engine) == []
    assert [
        la.fusion_rule for la in engine.layers if la.kind in ("LayerNormalization", "SoftMaxV2")
    ] == ["generated", "generated"]


def test_squeeze_and_excite_gates_in_a_pointwise_kernel() -> None:
    e = Exported()
    x = convolution(e, "x")
    narrow = e.add("Relu", convolution(e, e.add("GlobalAveragePool", x), kernel=1))
    gate = e.add("Sigmoid", convolution(e, narrow, kernel=1))
    engine = predicted(e, convolution(e, e.add("Mul", x, gate)))

    mul = layer_of(engine, next(n.name for n in e.nodes if n.op_type == "Mul"))
    assert (mul.kind, mul.outputs[0].dtype) == ("PointWiseV2", INT8)
    assert sorted(t.dims for t in mul.inputs) == [(1, 32, 1, 1), (1, 32, 8, 8)]


def test_a_recurrent_layer_multiplies_its_whole_input_in_int8_and_recurs_in_float() -> None:
    e = Exported()
    e.weights |= {"r": np.zeros((1, 64, 16), np.float32)}
    w = e.weight(1, 64, 32)
    e.nodes.append(node("LSTM", [e.pair("x"), w, "r"], ["y"], "lstm", hidden_size=16))
    engine = predicted(e, "y", shape=(10, 1, 32))

    assert [(la.kind, types(la), la.fusion_rule) for la in engine.layers[1:]] == [
        ("MatrixMultiply", "Int8 -> Float", "recurrent-int8"), ("Loop", "Float -> Float", "recurrence"),
    ]  # fmt: skip


def test_what_lies_in_one_concat_is_copied_into_the_next() -> None:
    e = Exported()
    a, b = convolution(e, "x"), convolution(e, "x", kernel=1)
    first = e.add("Concat", a, b, axis=1)
    second = e.add("Concat", a, first, axis=1)
    engine = predicted(
        e, e.add("Add", second, e.add("Concat", first, b, axis=1)), shape=(1, 32, 8, 8)
    )

    copied = [la.name for la in engine.layers if la.fusion_rule == "concat"]
    assert copied == [f"{a} copy", f"{first} copy", f"{b} copy"]


@pytest.mark.parametrize("inner", [True, False], ids=["over the plane", "over channels"])
def test_a_mean_over_the_plane_is_a_pool(inner: bool) -> None:
    e = Exported()
    pooled = e.add("ReduceMean", e.pair("x"), axes=[2, 3] if inner else [1], keepdims=1)
    y = e.add("Conv", e.pair(pooled), e.weight(32, 32 if inner else 1, 1, 1))
    engine = predicted(e, y)

    layer = layer_of(engine, pooled.removesuffix(".out"))
    assert (layer.kind, types(layer)) == (
        ("CudaPooling", PLAIN) if inner else ("Reduce", "Float -> Int8")
    )


@pytest.mark.parametrize(
    ("group", "expected"), [(16, "grouped-channels"), (8, "float-result"), (32, "float-result")]
)
def test_grouped_convolutions_need_four_channels_a_group(group: int, expected: str) -> None:
    e = Exported()
    engine = predicted(e, convolution(e, "x", group=group))

    assert layer_of(engine, "Conv_4").fusion_rule == expected


def test_a_three_dimensional_deconvolution_stays_in_float() -> None:
    e = Exported()
    y = e.add("ConvTranspose", e.pair("x"), e.weight(32, 32, 2, 2, 2))

    assert (
        layer_of(predicted(e, y, shape=(1, 32, 4, 4, 4)), "ConvTranspose_4").fusion_rule
        == "deconvolution-3d"
    )


def test_only_pairs_on_both_operands_make_int8() -> None:
    e = Exported()
    engine = predicted(e, convolution(e, "x", pair=False))

    assert [
        (la.fusion_rule, types(la)) for la in engine.layers if la.kind == "CaskConvolution"
    ] == [("float-operands", "Float -> Float")]


def test_a_strongly_typed_half_graph_writes_half() -> None:
    e = Exported()
    y = convolution(e, convolution(e, "x"))
    model = finished(e, y)
    strong, weak = predict_engine(model, TRT), predict_engine(model, TRT, allow_fp16=True)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(
                    onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name
                )
            )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model.opset_import[0].version = 19
    half = predict_engine(model, TRT)

    last = [layer_of(engine, y.removesuffix(".out")).outputs[0] for engine in (strong, weak, half)]
    assert [(t.dtype, t.format) for t in last] == [
        (FLOAT, "linear"),
        (FLOAT, "linear"),
        (HALF, "32-wide"),
    ]


def test_shape_arithmetic_is_no_layer() -> None:
    e = Exported()
    e.weights |= {"first": np.array([0], np.int64), "rest": np.array([-1], np.int64)}
    target = e.add("Concat", e.add("Gather", e.add("Shape", "x"), "first"), "rest", axis=0)
    y = e.add("Gemm", e.pair(e.add("Reshape", "x", target)), e.weight(8, 2048), transB=1)
    engine = predicted(e, y, shape=(2, 32, 8, 8))

    assert [la.kind for la in engine.layers] == [REFORMAT, NO_OP, "MatrixMultiply"]
    assert engine.layers[-1].inputs[0].dims == (2, 2048)


def test_dynamic_dimensions_take_the_shapes_given() -> None:
    e = Exported()
    model = finished(e, convolution(e, "x"), shape=("n", 32, 8, 8))  # type: ignore[arg-type]

    assert predict_engine(model, TRT).layers[0].inputs[0].dims == (1, 32, 8, 8)
    assert predict_engine(model, TRT, {"x": (7, 32, 8, 8)}).layers[-1].outputs[0].dims == (
        7,
        32,
        8,
        8,
    )


def test_what_the_importer_refuses_is_predicted_as_a_failure() -> None:
    e = Exported()
    e.weights["zero"] = np.array(5, np.int8)
    shifted = predicted(e, convolution(e, "x"))
    assert shifted.failure == f"{e.nodes[0].name}: a zero point other than zero is not supported"
    assert shifted.layers == ()

    e = Exported()
    e.weights |= {"b": np.zeros(32, np.int32), "b.scale": np.array(0.1, np.float32)}
    bias = e.add("DequantizeLinear", "b", "b.scale")
    y = e.add("Conv", e.pair("x"), e.weight(32, 32, 1, 1), bias)
    assert "a DequantizeLinear of INT32" in predicted(e, y).failure


def test_fp8_is_refused_below_ada_and_multiplied_from_there_on() -> None:
    e = Exported()
    y = convolution(e, "x")
    model = finished(e, y)
    model.opset_import[0].version = 19
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            tensor.CopyFrom(
                helper.make_tensor(
                    tensor.name,
                    TensorProto.FLOAT8E4M3FN,
                    tensor.dims,
                    [0.0] * int(np.prod(tensor.dims)),
                )
            )

    assert predict_engine(model, TRT).failure.endswith(
        ": FP8 needs compute capability 8.9 or higher"
    )
    assert (
        types(layer_of(predict_engine(model, Target("trt", 89)), y.removesuffix(".out")))
        == "FP8 -> Float"
    )


# --- any graph --------------------------------------------------------------------------------------------------------


def require_whole(engine: Engine, model: onnx.ModelProto) -> None:
    """Assert that every node runs at most once, in an order in which its inputs exist, by a rule that is written down."""
    computing = [
        n
        for la in engine.layers
        if la.fusion_rule not in ("reformat", "concat", "stand-alone-quantize")
        for n in la.nodes
    ]
    pairs = {
        n.name for n in model.graph.node if n.op_type in PAIR
    }  # one on a weight that two layers read runs in both
    assert len([n for n in computing if n not in pairs]) == len(set(computing) - pairs)
    joined = {o for n in model.graph.node if n.op_type == "Concat" for o in n.output}
    there = {i.name for i in model.graph.input}
    for layer in engine.layers:
        assert layer.fusion_rule in FUSION_RULES
        assert layer.outputs
        for tensor in layer.inputs:
            assert tensor.name in there | joined, (layer.name, tensor)
        there |= {t.name for t in layer.outputs}


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(model=models())
def test_any_quantized_graph_is_predicted_whole(model: onnx.ModelProto) -> None:
    quantized = qdq.quantize(model, "noise").model

    for allowed in (False, True):
        require_whole(predict_engine(quantized, TRT, allow_fp16=allowed), quantized)
        require_whole(predict_engine(model, TRT, allow_fp16=allowed), model)


@pytest.mark.parametrize("placement", PUBLISHED)
def test_resnet18_is_predicted_whole(placement: str) -> None:
    model = resnet18(placement)
    for allowed in (False, True):
        require_whole(predict_engine(model, TRT, allow_fp16=allowed), model)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a float model and the same with pairs."""
    from tests.support.cli_runner import tiny_model

    return save(tiny_model(), tmp_path / "model.onnx"), save(
        qdq.quantize(tiny_model(), "noise").model, tmp_path / "model.int8.onnx"
    )


def test_validate_predicts_a_trt_target_without_data(files: tuple[Path, Path]) -> None:
    code, text, error = run("validate", *files, "--target", "trt:sm80")

    assert (code, error) == (0, "")
    assert "TensorRT, strongly typed, predicted" in text
    assert "trt:sm80: predicted, not built; its layers follow" in text
    for rule in ("stand-alone-quantize", "few-channels", "view", "float-result"):
        assert FUSION_RULES[rule].description in text


def test_a_predicted_report_carries_rules_and_reformats_in_json(files: tuple[Path, Path]) -> None:
    code, text, _ = run(
        "validate", *files, "--target", "trt:sm80", "--allow-fp16", "--format", "json"
    )

    (engine,) = json.loads(text)["validation"]["engines"]
    assert code == 0
    assert (engine["kind"], engine["compiler"]) == (
        "predicted",
        "TensorRT, weakly typed, FP16 allowed",
    )
    assert engine["standalone_qdq"] != []
    assert engine["reformats"] >= 1
    assert {"rule", "description", "source", "layers", "kinds"} == set(engine["fusion_rules"][0])
    assert sum(r["layers"] for r in engine["fusion_rules"]) >= engine["kernels"]
    assert [v["int8"] for v in engine["layers"]] == [True, True]


def test_a_promise_that_the_prediction_does_not_keep_is_broken(tmp_path: Path) -> None:
    model = build(
        [node("Conv", ["x", "w"], "y", "odd", group=2, pads=[1] * 4)],
        {"x": [1, 12, 8, 8]}, ["y"], {"w": np.random.default_rng(0).standard_normal((12, 6, 3, 3)).astype(np.float32)},
    )  # fmt: skip
    plan = qdq.quantize(model, "noise")
    paths = save(model, tmp_path / "m.onnx"), save(plan.model, tmp_path / "q.onnx")

    code, text, _ = run("validate", *paths, "--target", "trt:sm80")

    assert code == 1
    assert (
        "odd [weighted-inputs, weights-per-channel]: the pairs promise INT8, but the engine is predicted to run it as CaskConvolution Float -> Float -> Float: "
        in text
    )
    assert FUSION_RULES["grouped-channels"].description in text


def test_a_model_that_tensorrt_refuses_is_missed(files: tuple[Path, Path], tmp_path: Path) -> None:
    model = onnx.load(files[1])
    zero = next(n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear")
    for tensor in model.graph.initializer:
        if tensor.name == zero:
            tensor.CopyFrom(
                helper.make_tensor(
                    zero, TensorProto.INT8, tensor.dims, [3] * int(np.prod(tensor.dims))
                )
            )

    # the float model still builds: only the pairs are at fault
    code, text, _ = run(
        "validate", files[0], save(model, tmp_path / "shifted.onnx"), "--target", "trt:sm80"
    )

    assert code == 1
    assert "TensorRT is predicted to refuse this model only with Q/DQ" in text


def test_quantize_validates_a_trt_target_by_predicting_it(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    code, text, error = run(
        "quantize",
        files[0],
        "-o",
        tmp_path / "out.onnx",
        "--data",
        "noise",
        "--target",
        "trt:sm80",
        "--validate",
    )

    assert (code, error) == (0, "")
    assert "predicted, not built" in text


def test_where_tensorrt_and_a_gpu_are_present_the_engine_is_run_and_not_predicted(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdq.validation.validator.is_gpu_present", lambda: True)

    code, _, error = run("validate", *files, "--target", "trt:sm80")

    assert (code, error) == (
        2,
        "qdq: target trt:sm80: an engine runs only with samples. Pass --data.\n",
    )


def test_layers_in_bodies_are_named_as_not_predicted() -> None:
    model = branching()
    quantized = qdq.quantize(model, samples(model))

    (engine,) = qdq.validate(model, quantized.model, targets=[TRT]).engines

    inside = [v.node for v in engine.layers if v.promised and "." in v.node]
    assert inside != []
    assert set(inside) <= set(engine.unmapped)
    assert engine.broken_promises == ()


def test_layers_that_no_output_depends_on_are_not_built() -> None:
    nodes = [
        node("Conv", ["x", "w"], "y", name="live"),
        node("Conv", ["x", "w"], "unread", name="dead"),
    ]
    shape = [1, 4, 6, 6]
    model = build(nodes, {"x": shape}, {"y": shape}, {"w": noise(4, 4, 1, 1)})
    engine = predict_engine(model, TRT)
    assert [layer.nodes for layer in engine.layers] == [("live",)]


def test_pairs_on_a_layer_that_no_output_depends_on_promise_nothing() -> None:
    constants = {"s": np.array(0.02, np.float32), "z": np.array(0, np.int8), "w": noise(8, 8)}
    pairs = []
    for tensor in ("x", "w"):
        pairs += [
            node("QuantizeLinear", [tensor, "s", "z"], f"{tensor}_q"),
            node("DequantizeLinear", [f"{tensor}_q", "s", "z"], f"{tensor}_dq"),
        ]
    products = [
        node("MatMul", ["x_dq", "w_dq"], "y", name="live"),
        node("MatMul", ["x_dq", "w_dq"], "unread", name="dead"),
    ]
    model = build([*pairs, *products], {"x": [8, 8]}, {"y": [8, 8]}, constants)
    (engine,) = qdq.validate(qdq.strip(model), model, targets=[TRT]).engines
    assert [verdict.node for verdict in engine.layers] == ["live"]
    assert engine.broken_promises == ()
