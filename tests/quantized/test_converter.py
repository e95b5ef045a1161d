"""Quantized models in other spellings become plain Q/DQ that computes the same, and strip to the float model they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq.errors import ModelError
from qdq.quantized.converter import convert_to_qdq, find_unconverted
from qdq.quantized.model import QuantizedModel
from qdq.quantized.symmetry import pair_amax
from tests.support.graphs import (
    Array,
    build,
    convolution,
    initializer,
    node,
    noise,
    random_feed,
    run,
    value,
)
from tests.support.peers import QOPERATOR, feeds, language, ort_dynamic, ort_static, vision

MICROSOFT = {"com.microsoft": 1}
SCALAR = np.float32


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in plain pairs, and check that nothing else is quantized in it."""
    source, converted = convert_to_qdq(qdq.load(model))
    assert converted
    assert find_unconverted(source.model) == ()
    onnx.checker.check_model(source.model)
    return source.model


def quantized(
    op: str, *rest: str, x: str = "xq", s: str = "sx", z: str = "zx"
) -> list[onnx.NodeProto]:
    """Return x quantized, a quantized operator on it, and its result in floats."""
    return [
        node("QuantizeLinear", ["x", "sx", "zx"], "xq"),
        node(
            op,
            [x, s, z, *rest],
            "y_quantized",
            "op_quant",
            domain="" if op in ("QLinearConv", "QLinearMatMul") else "com.microsoft",
        ),
        node("DequantizeLinear", ["y_quantized", "sy", "zy"], "y"),
    ]


SCALES = {"sx": SCALAR(0.05), "sy": SCALAR(0.03), "zx": np.uint8(120), "zy": np.uint8(7)}
WEIGHT = {"sw": SCALAR(0.01), "zw": np.int8(0)}


def alike(
    model: onnx.ModelProto, other: onnx.ModelProto, levels: float = 1.01, scale: float = 0.03
) -> None:
    """Assert that two models give the same, but for some levels of the result's scale."""
    feed = random_feed(model)
    for result, expected in zip(run(model, feed), run(other, feed), strict=True):
        assert np.abs(result - expected).max() <= levels * scale


@pytest.mark.parametrize(
    ("op", "rest", "weights", "attributes"),
    [
        (
            "QLinearConv",
            ["w", "sw", "zw", "sy", "zy"],
            {"w": np.int8(50 * noise(4, 4, 3, 3)), **WEIGHT},
            {"pads": [1] * 4},
        ),
        (
            "QLinearConv",
            ["w", "s4", "z4", "sy", "zy", "b"],
            {"w": np.int8(50 * noise(4, 4, 3, 3)), "b": np.int32(900 * noise(4))},
            {"pads": [1] * 4},
        ),
        (
            "QLinearMatMul",
            ["m", "sw", "zw", "sy", "zy"],
            {"m": np.int8(50 * noise(6, 5)), **WEIGHT},
            {},
        ),
        ("QLinearMatMul", ["m", "s5", "z5", "sy", "zy"], {"m": np.int8(50 * noise(6, 5))}, {}),
        ("QLinearSigmoid", ["sy", "zy"], {}, {}),
        ("QLinearLeakyRelu", ["sy", "zy"], {}, {"alpha": 0.2}),
        ("QLinearAveragePool", ["sy", "zy"], {}, {"kernel_shape": [2, 2]}),
        ("QLinearGlobalAveragePool", ["sy", "zy"], {}, {}),
        (
            "QLinearAdd",
            ["c", "sw", "zu", "sy", "zy"],
            {"c": np.uint8(np.arange(6)), "zu": np.uint8(3), **WEIGHT},
            {},
        ),
        (
            "QLinearMul",
            ["c", "sw", "zu", "sy", "zy"],
            {"c": np.uint8(np.arange(6)), "zu": np.uint8(3), **WEIGHT},
            {},
        ),
        ("QLinearSoftmax", ["sy", "zy"], {}, {"axis": 1, "opset": 12}),
        ("QLinearSoftmax", ["sy", "zy"], {}, {"axis": 2, "opset": 13}),
    ],
)
def test_a_quantized_operator_becomes_a_float_one_between_its_scales(
    op: str, rest: list[str], weights: dict[str, Any], attributes: dict[str, Any]
) -> None:
    channels = {
        "s4": np.float32([0.01, 0.02, 0.005, 0.01]),
        "z4": np.zeros(4, np.int8),
        "s5": np.float32([0.01, 0.02, 0.005, 0.01, 0.03]),
        "z5": np.zeros(5, np.int8),
    }
    nodes = quantized(op, *rest)
    nodes[1].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    used = {
        k: v for k, v in (channels | SCALES | weights).items() if any(k in n.input for n in nodes)
    }
    model = build(nodes, {"x": [1, 4, 6, 6]}, {"y": [None] * 4}, used, domains=MICROSOFT)
    alike(model, plain(model))
    stripped = qdq.strip(model)
    assert not [n.op_type for n in stripped.graph.node if "Quantize" in n.op_type or n.domain]
    assert "op" in {n.name for n in stripped.graph.node}
    assert stripped.graph.output[0].name == "y"


def test_concat_where_and_gemm_take_their_operands_from_other_slots() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], "xq"),
        node(
            "QLinearConcat",
            ["sy", "zy", "xq", "sx", "zx", "c", "sw", "zx"],
            "cat",
            axis=1,
            domain="com.microsoft",
        ),
        node(
            "QLinearWhere",
            ["mask", "cat", "sy", "zy", "c", "sw", "zx", "sx", "zx"],
            "sel",
            domain="com.microsoft",
        ),
        node(
            "QGemm",
            ["sel", "sx", "zx", "w", "s3", "z3", "b", "sy", "zy"],
            "y_quantized",
            transB=1,
            domain="com.microsoft",
        ),
        node("DequantizeLinear", ["y_quantized", "sy", "zy"], "y"),
        node(
            "QGemm", ["sel", "sx", "zx", "w", "s3", "z3", ""], "f", transB=1, domain="com.microsoft"
        ),
    ]
    weights = {
        **SCALES, "sw": SCALAR(0.02), "c": np.uint8([[1], [200]]), "mask": np.array([[True, False, True, False]]), "w": np.int8(50 * noise(3, 4)),
        "s3": np.float32([0.01, 0.02, 0.03]), "z3": np.zeros(3, np.int8), "b": np.int32([3000, -2000, 50]),
    }  # fmt: skip
    model = build(nodes, {"x": [2, 3]}, {"y": [2, 3], "f": [2, 3]}, weights, domains=MICROSOFT)
    alike(model, plain(model))
    assert [n.op_type for n in qdq.strip(model).graph.node] == ["Concat", "Where", "Gemm", "Gemm"]


@pytest.mark.parametrize("opset", [17, 18])
def test_the_axes_of_a_mean_are_an_input_where_the_opset_wants_that(opset: int) -> None:
    nodes = quantized("QLinearReduceMean", "sy", "zy")
    nodes[1].attribute.extend(
        [helper.make_attribute("axes", [2, 3]), helper.make_attribute("keepdims", 0)]
    )
    model = build(nodes, {"x": [1, 4, 6, 6]}, {"y": [1, 4]}, SCALES, domains=MICROSOFT, opset=opset)
    feed = random_feed(model)
    np.testing.assert_allclose(run(qdq.strip(model), feed)[0], feed["x"].mean((2, 3)), atol=1e-5)


def test_a_bias_in_integers_becomes_floats_of_the_product_of_both_scales() -> None:
    weights = {
        "w": np.int8(50 * noise(4, 4, 1, 1)),
        "b": np.int32([100, -7, 0, 2**30]),
        "s4": np.float32([0.01, 0.02, 0.005, 0.01]),
        "z4": np.zeros(4, np.int8),
    }
    model = build(
        quantized("QLinearConv", "w", "s4", "z4", "sy", "zy", "b"),
        {"x": [1, 4, 6, 6]},
        {"y": [None] * 4},
        SCALES | weights,
    )
    bias = initializer(qdq.strip(model), qdq.strip(model).graph.node[0].input[2])
    np.testing.assert_allclose(
        bias, weights["b"] * (np.float64(SCALES["sx"]) * weights["s4"]), rtol=1e-7
    )


@pytest.mark.parametrize(
    ("between", "attributes", "more"),
    [
        ("MaxPool", {"kernel_shape": [2, 2]}, []),
        ("Transpose", {"perm": [0, 2, 3, 1]}, []),
        ("Reshape", {}, ["shape"]),
        ("Pad", {}, ["pads"]),
        ("Pad", {}, ["pads", "seven"]),
        ("Flatten", {}, []),
    ],
)
def test_an_operator_on_integers_moves_behind_the_dequantization(
    between: str, attributes: dict[str, Any], more: list[str]
) -> None:
    weights = {
        **SCALES,
        "shape": np.int64([1, 6, 4, 6]),
        "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
        "seven": np.uint8(7),
    }
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], "q"),
        node(between, ["q", *more], "m", **attributes),
        node("DequantizeLinear", ["m", "sx", "zx"], "y"),
    ]
    used = {k: v for k, v in weights.items() if any(k in n.input for n in nodes)}
    model = build(
        nodes, {"x": [1, 4, 6, 6]}, {"y": [None] * (2 if between == "Flatten" else 4)}, used
    )
    alike(model, plain(model), levels=1e-6)
    assert [n.op_type for n in qdq.strip(model).graph.node] == [between]


def test_stored_integers_that_are_picked_before_they_are_dequantized_become_a_float_table() -> None:
    table = np.random.default_rng(0).integers(0, 255, (9, 4)).astype(np.uint8)
    nodes = [
        node("Gather", ["table", "ids"], "rows"),
        node("DequantizeLinear", ["rows", "s", "z"], "f"),
        node("Add", ["f", "x"], "y"),
    ]
    model = build(
        nodes, {"x": [3, 4]}, {"y": [3, 4]}, {"table": table, "s": SCALAR(0.1), "z": np.uint8(128)}
    )
    model.graph.input.append(value("ids", [3], TensorProto.INT64))
    stripped = qdq.strip(model)
    feed = {"x": noise(3, 4), "ids": np.int64([1, 8, 2])}
    np.testing.assert_allclose(run(stripped, feed)[0], run(model, feed)[0], atol=1e-5)
    assert [n.op_type for n in stripped.graph.node] == ["Gather", "Add"]


@pytest.mark.parametrize(
    ("zero", "kept"),
    [(np.uint8(0), True), (np.int8(-128), True), (np.uint8(1), False), (np.int8(0), False)],
)
def test_a_relu_that_was_folded_into_the_quantization_comes_back(
    zero: np.generic, kept: bool
) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("QuantizeLinear", ["c", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "y"),
    ]
    model = build(
        nodes,
        {"x": [1, 3, 6, 6]},
        {"y": [None] * 4},
        {"w": noise(4, 3, 3, 3), "s": SCALAR(0.1), "z": zero},
    )
    assert ("Relu" in {n.op_type for n in qdq.strip(model).graph.node}) == kept


@pytest.mark.parametrize(
    ("scale", "op"),
    [
        (6 / 255, "Clip"),
        (1 / 255, "Clip"),
        (6 / 127, "Clip"),
        (5.93 / 255, "Relu"),
        (6.001 / 255, "Relu"),
    ],
)
def test_a_clip_that_was_folded_ends_at_a_whole_number(scale: float, op: str) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("QuantizeLinear", ["c", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "y"),
    ]
    model = build(
        nodes,
        {"x": [1, 3, 6, 6]},
        {"y": [None] * 4},
        {"w": 9 * noise(4, 3, 3, 3), "s": SCALAR(scale), "z": np.uint8(0)},
    )
    stripped = qdq.strip(model)
    assert [n.op_type for n in stripped.graph.node] == ["Conv", op]
    if op == "Clip":
        assert run(stripped, random_feed(model))[0].max() == round(
            scale * (255 if scale < 0.03 else 127)
        )


@pytest.mark.parametrize("behind", ["Relu", "Sigmoid", "MaxPool", "Clip"])
def test_no_relu_is_written_out_where_nothing_is_below_zero_anyway(behind: str) -> None:
    more = (
        [node("Relu", ["c"], "r"), node("MaxPool", ["r"], "a", kernel_shape=[2, 2])]
        if behind == "MaxPool"
        else [node(behind, ["c", *["zero"] * (behind == "Clip")], "a")]
    )
    nodes = [
        node("Conv", ["x", "w"], "c"),
        *more,
        node("QuantizeLinear", ["a", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "y"),
    ]
    weights = {"w": noise(4, 3, 3, 3), "s": SCALAR(0.1), "z": np.uint8(0)} | (
        {"zero": SCALAR(0)} if behind == "Clip" else {}
    )
    assert len(
        qdq.strip(build(nodes, {"x": [1, 3, 6, 6]}, {"y": [None] * 4}, weights)).graph.node
    ) == 1 + len(more)


def test_the_two_scales_of_a_pair_that_differ_leave_their_factor_in_the_float_model() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "t", "z"], "d"),
        node("MatMul", ["d", "w"], "y"),
    ]
    weights = {"s": SCALAR(0.01), "t": SCALAR(0.02), "z": np.int8(0), "w": noise(4, 3)}
    model = build(nodes, {"x": [2, 4]}, ["y"], weights)
    alike(model, plain(model), levels=1e-4)
    feed = random_feed(model)
    np.testing.assert_allclose(
        run(qdq.strip(model), feed)[0], 2 * feed["x"] @ weights["w"], rtol=1e-5, atol=1e-5
    )
    close = build(nodes, {"x": [2, 4]}, ["y"], weights | {"t": SCALAR(0.010000001)})
    assert [n.op_type for n in qdq.strip(close).graph.node] == ["MatMul"]


def test_a_cast_of_integers_without_a_type_is_left_to_the_checks() -> None:
    model = build(
        [
            node("QuantizeLinear", ["x", "sx", "zx"], "xq"),
            node("Cast", ["xq"], "cast"),
            node("DequantizeLinear", ["cast", "sx", "zx"], "y"),
        ],
        {"x": [1, 4]},
        {"y": [1, 4]},
        SCALES,
    )
    source, _ = convert_to_qdq(qdq.load(model))
    assert "Cast" in [item.op_type for item in source.model.graph.node]


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_runtime_operators_of_pairs_become_those_of_onnx(domain: str) -> None:
    pair = [
        node("QuantizeLinear", ["x", "s", "z"], "q", domain=domain),
        node("DequantizeLinear", ["q", "s", "z"], "d", domain=domain),
    ]
    model = build(
        [*pair, node("Relu", ["d"], "y")],
        {"x": [2, 4]},
        {"y": [2, 4]},
        {"s": SCALAR(0.1), "z": np.int8(0)},
        domains={domain: 1} if domain else None,
    )
    source, converted = convert_to_qdq(qdq.load(model))
    assert [item.op for item in converted] == (
        ["QuantizeLinear", "DequantizeLinear"] if domain else []
    )
    assert {n.domain for n in source.model.graph.node} == {""}
    assert [entry.domain for entry in source.model.opset_import] == [""]


@pytest.mark.parametrize(
    ("low", "high", "amax"), [(-127, 127, 127.0), (0, 127, 127.0), (-8, 7, 7.0), (-128, 127, 127.0)]
)
def test_a_clip_between_the_halves_of_a_pair_narrows_its_range(
    low: int, high: int, amax: float
) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("Clip", ["q", "low", "high"], "c"),
        node("DequantizeLinear", ["c", "s", "z"], "d"),
        node("MatMul", ["d", "w"], "y"),
    ]
    weights = {
        "s": SCALAR(0.5),
        "z": np.int8(0),
        "low": np.int8(low),
        "high": np.int8(high),
        "w": noise(32, 32),
    }
    result = qdq.quantize(build(nodes, {"x": [2, 32]}, ["y"], weights), None)
    (tensor_range,) = result.scales.given_ranges.tensors
    assert tensor_range.amax == amax * 0.5
    assert [n.op_type for n in qdq.strip(result.model).graph.node] == ["MatMul"]


def test_constants_of_a_pair_that_nodes_compute_are_stored() -> None:
    nodes = [
        node("Identity", ["s0"], "s"),
        node(
            "ConstantOfShape",
            ["none"],
            "zeros",
            value=numpy_helper.from_array(np.zeros(1, np.int32)),
        ),
        node("Cast", ["zeros"], "z", to=TensorProto.INT8),
        node("Clip", ["w", "low"], "narrow"),
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("DequantizeLinear", ["narrow", "s", "z"], "wd"),
        node("MatMul", ["d", "wd"], "y"),
    ]
    weights = {
        "s0": SCALAR(0.1),
        "none": np.zeros(0, np.int64),
        "w": np.int8([[-128, 3], [4, 5]]),
        "low": np.int8(-127),
    }
    model = build(nodes, {"x": [2, 2]}, {"y": [2, 2]}, weights)
    alike(model, plain(model), levels=1e-5)
    stripped = qdq.strip(model)
    assert [n.op_type for n in stripped.graph.node] == ["MatMul"]
    np.testing.assert_array_equal(
        initializer(stripped, "wd"), np.float32([[-12.7, 0.3], [0.4, 0.5]])
    )


def test_initializers_that_are_listed_as_inputs_are_not_asked_for_when_they_are_gone() -> None:
    model = build(
        quantized("QLinearSigmoid", "sy", "zy"),
        {"x": [2, 4]},
        {"y": [2, 4]},
        SCALES,
        domains=MICROSOFT,
    )
    model.graph.input.extend(
        [
            value("sx", []),
            value("sy", []),
            value("zx", [], TensorProto.UINT8),
            value("zy", [], TensorProto.UINT8),
        ]
    )
    assert [i.name for i in qdq.strip(model).graph.input] == ["x"]


@pytest.mark.parametrize(
    ("tensor", "taken"), [("x", "INT8, as in TensorRT"), ("relu", "UINT8, as in ONNX")]
)
def test_a_pair_without_zero_point_is_unsigned_only_where_nothing_is_below_zero(
    tensor: str, taken: str
) -> None:
    nodes = [
        node("Neg", ["i"], "x"),
        node("Relu", ["x"], "relu"),
        node("QuantizeLinear", [tensor, "s"], "q"),
        node("DequantizeLinear", ["q", "s"], "y"),
    ]
    _, converted = convert_to_qdq(
        qdq.load(build(nodes, {"i": [2, 4]}, {"y": [2, 4]}, {"s": SCALAR(0.1)}))
    )
    assert [taken in item.conversion for item in converted] == [True]


def test_what_no_pair_can_stand_for_is_named() -> None:
    nodes = [node("MatMulInteger", ["a", "w"], "y", "product")]
    model = build(nodes, {"a": [2, 4]}, {"y": [2, 3]}, {"w": np.int8(50 * noise(4, 3))})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    for entry in (qdq.strip, lambda m: qdq.quantize(m, None)):
        with pytest.raises(
            ModelError,
            match=r"node product \(MatMulInteger\) has no float form that qdq knows[.;] [Qq]uantize the float model",
        ):
            entry(model)


def test_the_model_that_is_given_is_never_changed_and_plain_pairs_are_left_alone() -> None:
    model = ort_static(vision(), **QOPERATOR)
    before = model.SerializeToString()
    qdq.strip(model), convert_to_qdq(qdq.load(model)), QuantizedModel(model)
    assert model.SerializeToString() == before
    source = qdq.load(qdq.quantize(convolution(), "noise").model)
    assert convert_to_qdq(source) == (source, ())


@pytest.mark.parametrize("network", [vision, language], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_dynamically_quantized_model_gives_its_float_model_back(network: Any) -> None:
    model = network()
    stripped = qdq.strip(ort_dynamic(model))
    assert not [
        n.op_type for n in stripped.graph.node if "Integer" in n.op_type or "Quantize" in n.op_type
    ]
    feed = feeds(model, 1)[0]
    result, expected = run(stripped, feed)[0], run(model, feed)[0]
    assert np.linalg.norm(result - expected) < 0.05 * np.linalg.norm(expected)


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.0078125, 10, width=32),
    zero=st.integers(0, 255),
    values=st.lists(st.floats(-2000, 2000, width=32), min_size=1, max_size=8),
)
def test_the_symmetric_range_of_a_pair_holds_all_that_the_pair_lets_through(
    scale: float, zero: int, values: list[float]
) -> None:
    """But for one level at the lower end, as with INT8's own -128."""
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("MatMul", ["d", "w"], "y"),
    ]
    weights = {"s": SCALAR(scale), "z": np.uint8(zero), "w": np.eye(32, dtype=np.float32)}
    result = qdq.quantize(build(nodes, {"x": [1, 32]}, ["y"], weights), None)
    (given_range,) = result.scales.given_ranges.tensors
    feed: dict[str, Array] = {"x": np.resize(np.float32(values), (1, 32))}
    let_through = run(build(nodes, {"x": [1, 32]}, ["y"], weights), feed)[0]
    assert np.abs(let_through).max() <= given_range.amax + 1.001 * scale
    assert given_range.amax <= 255 * scale * 1.001


def test_runtime_operators_of_sixteen_bits_get_the_opset_that_has_them() -> None:
    pair = [
        node("QuantizeLinear", ["x", "s", "z"], "q", domain="com.microsoft"),
        node("DequantizeLinear", ["q", "s", "z"], "d", domain="com.microsoft"),
    ]
    model = build(
        [*pair, node("Relu", ["d"], "y")],
        {"x": [2, 4]},
        {"y": [2, 4]},
        {"s": SCALAR(0.1), "z": np.uint16(0)},
        domains=MICROSOFT,
    )
    onnx.checker.check_model(plain(model))


def test_scales_and_zero_points_of_other_shapes_have_no_range() -> None:
    model = build(
        [
            node("QuantizeLinear", ["x", "s", "z"], "q"),
            node("DequantizeLinear", ["q", "s", "z"], "d"),
            node("Relu", ["d"], "y"),
        ],
        {"x": [1, 4]},
        {"y": [1, 4]},
        {"s": np.full((2, 2), 0.1, np.float32), "z": np.zeros(4, np.int8)},
    )
    (edge,) = (item for item in QuantizedModel(model).edges)
    assert pair_amax(edge) is None
