"""Every code of `qdq check`: a model that gets it and a near miss that does not, and the engines that TensorRT-RTX builds of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.checking.catalogue import ERROR, PROBLEMS
from qdq.checking.finding import Finding
from qdq.checking.weight_checks import check_weight_scales
from qdq.documentation import locate_page
from qdq.engines.engine import Engine
from qdq.engines.rtx_compiler import Compiler
from qdq.quantized.model import QuantizedModel
from qdq.target import Target, parse_target
from tests.support.cli_runner import run, save
from tests.support.defects import (
    Model,
    channels_of_activation,
    computed_scale,
    drop,
    good,
    insert,
    made_by,
    negative_scale,
    one_scale_for_weight,
    other_axis,
    pair,
    reading,
    shifted,
    store,
    stored_as_integers,
    unsigned,
    without_pair,
    without_zero_point,
    zero_in_channel_scales,
)
from tests.support.float_models import between, cast_back, paired_product, product
from tests.support.graphs import Array, build, convolution, initializer, node, noise, value

SM86 = parse_target("rtx:sm86")
Damage = Callable[[Model], Any]


def damaged(*damages: Damage) -> Model:
    """Return the good model after some damages, each of which changes it or returns another."""
    model = good()
    for damage in damages:
        model = damage(model) or model
    return model


def newer(model: Model) -> None:
    model.opset_import[0].version, model.ir_version = 21, 10


def typed(kind: type) -> Damage:
    return lambda model: store(model, "x_z", np.array(0, kind))


def fewer_scales(model: Model) -> None:
    store(model, "w_s", np.full(3, 0.02, np.float32))
    store(model, "w_z", np.zeros(3, np.int8))


def one_zero_point(model: Model) -> None:
    store(model, "w_z", np.array(0, np.int8))


def no_axis(model: Model) -> None:
    for output in ("w_q", "w_dq"):
        del made_by(model, output).attribute[:]


def no_axis_that_fits(model: Model) -> None:
    no_axis(model)
    fewer_scales(model)


def half_precision_scale(model: Model) -> None:
    newer(model)
    store(model, "x_s", np.array(0.03, np.float16))


def integer_bias(model: Model) -> None:
    for name, array in (
        ("b", np.zeros(4, np.int32)),
        ("b_s", np.full(4, 1e-3, np.float32)),
        ("b_z", np.zeros(4, np.int32)),
    ):
        store(model, name, array)
    insert(model, 0, [node("DequantizeLinear", ["b", "b_s", "b_z"], "b_dq", name="bias", axis=0)])
    reading(model, "first").input.append("b_dq")


def float_bias(model: Model) -> None:
    store(model, "b", np.zeros(4, np.float32))
    reading(model, "first").input.append("b")


def stored_unsigned(model: Model) -> Model:
    copy = stored_as_integers(model, "w")
    store(copy, "w_q", np.ones((4, 3, 3, 3), np.uint8))
    store(copy, "w_z", np.zeros(4, np.uint8))
    return copy


def typed_by_attribute(model: Model) -> None:
    newer(model)
    for output in ("x_q", "x_dq"):
        made_by(model, output).input.pop()
    made_by(model, "x_q").attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))


def scale_of_constants(model: Model) -> None:
    """The scale is the product of two constants: known when the engine is built."""
    store(model, "x_s", None)
    store(model, "factor", np.array(0.1, np.float32))
    store(model, "other_factor", np.array(0.3, np.float32))
    insert(model, 0, [node("Mul", ["factor", "other_factor"], "x_s")])


def float_weight(model: Model) -> None:
    reading(model, "first").input[1] = "w"
    drop(model, "w_q", "w_dq")


def all_float(model: Model) -> None:
    without_pair(model)
    reading(model, "second").input[1] = "v"
    drop(model, "v_q", "v_dq")


def twice(model: Model, scale: float = 0.03) -> None:
    store(model, "again_s", np.array(scale, np.float32))
    again = [
        node("QuantizeLinear", ["x_dq", "again_s", "x_z"], "again_q", name=""),
        node("DequantizeLinear", ["again_q", "again_s", "x_z"], "again", name=""),
    ]
    insert(model, 2, again)
    reading(model, "first").input[0] = "again"


def unequal(model: Model) -> None:
    store(model, "other", np.array(0.06, np.float32))
    made_by(model, "x_dq").input[1] = "other"


def equal_by_another_name(model: Model) -> None:
    store(model, "other", np.array(0.03, np.float32))
    made_by(model, "x_dq").input[1] = "other"


def integer_output(model: Model) -> None:
    store(model, "y_s", np.array(0.1, np.float32))
    store(model, "y_z", np.array(0, np.int8))
    model.graph.node.extend(pair("y")[:1])
    del model.graph.output[:]
    model.graph.output.append(value("y_q", [1, 2, 4, 4], TensorProto.INT8))


def integer_input(model: Model) -> None:
    drop(model, "x_q")
    model.graph.input[0].CopyFrom(value("x_q", [1, 3, 6, 6], TensorProto.INT8))


def paired_output(model: Model) -> None:
    store(model, "y_s", np.array(0.1, np.float32))
    store(model, "y_z", np.array(0, np.int8))
    model.graph.node.extend(pair("y"))
    model.graph.output[0].name = "y_dq"


def unread_quantize(model: Model) -> None:
    insert(model, 0, [node("QuantizeLinear", ["x", "x_s", "x_z"], "unread", name="unread")])


def lone_dequantize(model: Model) -> None:
    """A DQ of integers that are computed, into a Cast beside the network."""
    insert(
        model, len(model.graph.node),
        [node("Cast", ["r"], "ints", to=TensorProto.INT8), node("DequantizeLinear", ["ints", "x_s", "x_z"], "floats", name="lone")],
    )  # fmt: skip
    model.graph.output.append(value("floats", [1, 4, 4, 4]))


def tiny(model: Model) -> None:
    store(model, "x_s", np.array(1e-40, np.float32))


def small(model: Model) -> None:
    store(model, "x_s", np.array(1e-30, np.float32))


def scaled_weight(factor: float) -> Damage:
    return lambda model: store(model, "w_s", initializer(model, "w_s") * np.float32(factor))


def at_opset(version: int) -> Damage:
    def set_version(model: Model) -> None:
        model.opset_import[0].version = version

    return set_version


def quantized_by_operator(op: str) -> Model:
    """Return a model of one of ONNX's integer operators."""
    x, result = ["x_q", "x_s", "x_z"], ["x_s", "x_z"] * 2
    constants: dict[str, Array] = {
        "x_s": np.array(0.1, np.float32),
        "x_z": np.array(0, np.int8),
        "w_q": np.ones((4, 3, 1, 1), np.int8),
    }
    constants["m_q"] = np.ones((6, 5), np.int8)
    floats, cast = (
        node("DequantizeLinear", ["y_q", "x_s", "x_z"], "y"),
        node("Cast", ["y_i"], "y", to=TensorProto.FLOAT),
    )
    last = {
        "QLinearConv": [node("QLinearConv", [*x, "w_q", *result], "y_q", name="op"), floats],
        "QLinearMatMul": [node("QLinearMatMul", [*x, "m_q", *result], "y_q", name="op"), floats],
        "ConvInteger": [node("ConvInteger", ["x_q", "w_q"], "y_i", name="op"), cast],
        "MatMulInteger": [node("MatMulInteger", ["x_q", "m_q"], "y_i", name="op"), cast],
        "DynamicQuantizeLinear": [
            node("DynamicQuantizeLinear", ["x"], ["d_q", "d_s", "d_z"], name="op"),
            node("DequantizeLinear", ["d_q", "d_s", "d_z"], "y"),
        ],
    }[op]
    first = (
        []
        if op == "DynamicQuantizeLinear"
        else [node("QuantizeLinear", ["x", "x_s", "x_z"], "x_q")]
    )
    return build([*first, *last], {"x": [1, 3, 6, 6]}, ["y"], constants)


class Network:
    """A graph that is put together: pairs with scales of their own, weights by channel."""

    def __init__(self) -> None:
        self.constants: dict[str, Array] = {}

    def pair(self, name: str, scale: float = 0.05) -> list[onnx.NodeProto]:
        self.constants |= {
            f"{name}_s": np.array(scale, np.float32),
            f"{name}_z": np.array(0, np.int8),
        }
        return pair(name)

    def weight(self, name: str, *shape: int, axis: int = 0) -> list[onnx.NodeProto]:
        values = noise(*shape, seed=len(self.constants))
        others = tuple(i for i in range(len(shape)) if i != axis)
        self.constants |= {
            name: values,
            f"{name}_s": (np.abs(values).max(others) / 127).astype(np.float32),
            f"{name}_z": np.zeros(shape[axis], np.int8),
        }
        return pair(name, axis=axis)


def residual(skip: bool) -> Model:
    """Return Conv(x) + x, the sum and its Relu in front of another Conv; the skip quantized or not."""
    net = Network()
    nodes = [
        *net.pair("x"), *net.weight("w", 32, 32, 3, 3), node("Conv", ["x_dq", "w_dq"], "c", name="conv", pads=[1] * 4),
        node("Add", ["c", "x_dq" if skip else "x"], "s", name="add"), node("Relu", ["s"], "r", name="relu"),
        *net.pair("r"), *net.weight("v", 32, 32, 1, 1), node("Conv", ["r_dq", "v_dq"], "y", name="last"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 32, 8, 8]}, ["y"], net.constants)


def pooled(quantized: bool) -> Model:
    """Return a Conv, an average pool and a Gemm; the pool's input quantized or not."""
    net = Network()
    nodes = [
        *net.pair("x"), *net.weight("w", 32, 32, 1, 1), node("Conv", ["x_dq", "w_dq"], "c", name="conv"), node("Relu", ["c"], "r", name="relu"),
        *(net.pair("r") if quantized else []), node("GlobalAveragePool", ["r_dq" if quantized else "r"], "p", name="pool"), node("Flatten", ["p"], "f"),
        *net.pair("f"), *net.weight("v", 32, 16, axis=1), node("Gemm", ["f_dq", "v_dq"], "y", name="fc"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 32, 8, 8]}, ["y"], net.constants)


def joined(other: float, pair_after: bool = False) -> Model:
    """Return a Concat of two quantized tensors in front of a Conv, with a pair after it or not."""
    net = Network()
    nodes = [
        *net.pair("x"), *net.pair("u", other), node("Concat", ["x_dq", "u_dq"], "c", name="join", axis=1), *(net.pair("c") if pair_after else []),
        *net.weight("w", 32, 64, 1, 1), node("Conv", ["c_dq" if pair_after else "c", "w_dq"], "y", name="conv"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 32, 8, 8], "u": [1, 32, 8, 8]}, ["y"], net.constants)


def normalised(between: bool) -> Model:
    """Return a Conv and the BatchNormalization after it, with a pair between or not."""
    net = Network()
    nodes = [
        *net.pair("x"), *net.weight("w", 32, 32, 1, 1), node("Conv", ["x_dq", "w_dq"], "c", name="conv"), *(net.pair("c") if between else []),
        node("BatchNormalization", ["c_dq" if between else "c", *["g"] * 4], "y", name="norm"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 32, 8, 8]}, ["y"], net.constants | {"g": np.ones(32, np.float32)})


def added(pair_on_output: bool) -> Model:
    """Return a Conv whose result goes into a Mul with an input, with a pair between or not."""
    net = Network()
    nodes = [
        *net.pair("x"), *net.weight("w", 32, 32, 1, 1), node("Conv", ["x_dq", "w_dq"], "c", name="conv"), *(net.pair("c") if pair_on_output else []),
        node("Mul", ["c_dq" if pair_on_output else "c", "u"], "y", name="product"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 32, 8, 8], "u": [1, 32, 8, 8]}, ["y"], net.constants)


def transposed(quantized: bool) -> Model:
    """Return a ConvTranspose, which has no INT8 kernel in TensorRT-RTX."""
    net = Network()
    net.constants["plain"] = noise(32, 32, 2, 2)
    nodes = [*net.pair("x"), *net.weight("w", 32, 32, 2, 2, axis=1)] if quantized else []
    return build(
        [*nodes, node("ConvTranspose", ["x_dq", "w_dq"] if quantized else ["x", "plain"], "y", name="up", strides=[2, 2]),
         *net.pair("z"), *net.weight("v", 32, 32, 1, 1), node("Conv", ["z_dq", "v_dq"], "y2", name="conv")],
        {"x": [1, 32, 8, 8], "z": [1, 32, 8, 8]}, ["y", "y2"], net.constants,
    )  # fmt: skip


def pointwise(quantized: bool) -> Model:
    """Return a Softmax beside a Conv; a pair on its input that no INT8 layer gains from."""
    net = Network()
    nodes = [
        *net.pair("x"), *net.weight("w", 32, 32, 1, 1), node("Conv", ["x_dq", "w_dq"], "y", name="conv"),
        *(net.pair("u") if quantized else []), node("Exp", ["u_dq" if quantized else "u"], "y2", name="exp"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 32, 8, 8], "u": [1, 32]}, ["y", "y2"], net.constants)


def clipped_weight(share: float) -> Model:
    """Return the good model with a share of one weight's values far out, and the scale that the others would have."""
    model = good()
    weight = initializer(model, "w").copy()
    weight.reshape(-1)[: int(share * weight.size)] *= 100.0
    store(model, "w", weight)
    return model


def eight_bit_floats(opset: int) -> Model:
    """Return the good model in FP8 at an opset."""
    model = good()
    for name in ("x_z", "w_z", "r_z", "v_z"):
        shape = initializer(model, name).shape
        store(model, name, None)
        model.graph.initializer.append(
            helper.make_tensor(
                name, TensorProto.FLOAT8E4M3FN, shape, bytes(max(1, int(np.prod(shape)))), raw=True
            )
        )
    model.opset_import[0].version, model.ir_version = opset, 9
    return model


def mixed_types() -> Model:
    """Return FP8 on one layer and INT8 on the other."""
    model = eight_bit_floats(19)
    for name in ("r_z", "v_z"):
        kept = [t for t in model.graph.initializer if t.name != name]
        shape = next(tuple(t.dims) for t in model.graph.initializer if t.name == name)
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        store(model, name, np.zeros(shape, np.int8))
    return model


def scalar(kind: type) -> Model:
    """Return the good model with a factor after it, stored as a quantized scalar or as a float."""
    model = good()
    if kind is np.int8:
        for name, array in (
            ("k_s", np.array(0.01, np.float32)),
            ("k_z", np.array(0, np.int8)),
            ("k_q", np.array(5, np.int8)),
        ):
            store(model, name, array)
        insert(model, 0, [node("DequantizeLinear", ["k_q", "k_s", "k_z"], "k", name="scalar")])
    else:
        store(model, "k", np.array(0.05, np.float32))
    model.graph.node.append(node("Mul", ["y", "k"], "product"))
    model.graph.output[0].name = "product"
    return model


def turned(model: Model) -> Model:
    """Return a copy whose weight is stored as integers of another layout, before a Transpose."""
    copy = stored_as_integers(model, "w")
    store(copy, "w_q", np.ascontiguousarray(initializer(copy, "w_q").transpose(1, 0, 2, 3)))
    insert(copy, 0, [node("Transpose", ["w_q"], "turned", name="turn", perm=[1, 0, 2, 3])])
    made_by(copy, "w_dq").input[0] = "turned"
    return copy


#: Code -> how a model that gets it is made, and one that does not.
MODELS: dict[str, tuple[Callable[[], Model], Callable[[], Model]]] = {
    "zero-point": (lambda: damaged(shifted), good),
    "scale-not-positive": (lambda: damaged(negative_scale), lambda: damaged(small)),
    "scale-count": (lambda: damaged(fewer_scales), good),
    "scale-not-constant": (lambda: damaged(computed_scale), lambda: damaged(scale_of_constants)),
    "scale-type": (lambda: damaged(half_precision_scale), lambda: damaged(newer)),
    "int32-dequantize": (lambda: damaged(integer_bias), lambda: damaged(float_bias)),
    "unsupported-operator": (lambda: quantized_by_operator("QLinearConv"), good),
    "unsupported-type": (lambda: damaged(newer, typed(np.int16)), lambda: damaged(newer)),
    "stored-integers": (lambda: damaged(turned), lambda: stored_as_integers(good(), "w", "v")),
    "uint8": (lambda: damaged(unsigned), good),
    "no-zero-point": (lambda: damaged(without_zero_point), lambda: damaged(typed_by_attribute)),
    "default-axis": (lambda: damaged(no_axis_that_fits), lambda: damaged(one_scale_for_weight)),
    "opset": (lambda: damaged(at_opset(12)), lambda: damaged(at_opset(13))),
    "channel-scales": (lambda: damaged(channels_of_activation), good),
    "wrong-axis": (lambda: damaged(other_axis), good),
    "half-quantized": (lambda: damaged(float_weight), lambda: damaged(all_float)),
    "residual-in-float": (lambda: residual(False), lambda: residual(True)),
    "pool-in-float": (lambda: pooled(False), lambda: pooled(True)),
    "unequal-scales": (lambda: joined(0.08), lambda: joined(0.05)),
    "pair-in-fusion": (lambda: normalised(True), lambda: normalised(False)),
    "pair-on-output": (lambda: added(True), lambda: added(False)),
    "no-kernel": (lambda: transposed(True), lambda: transposed(False)),
    "missing-pair": (lambda: damaged(all_float), good),
    "unwanted-pair": (lambda: pointwise(True), lambda: pointwise(False)),
    "element-type": (mixed_types, lambda: eight_bit_floats(19)),
    "not-quantized": (convolution, good),
    "weight-per-tensor": (lambda: damaged(one_scale_for_weight), good),
    "tiny-scale": (lambda: damaged(tiny), lambda: damaged(small)),
    "saturated-weights": (lambda: clipped_weight(0.1), lambda: clipped_weight(0.02)),
    "weight-scale": (lambda: damaged(scaled_weight(6.0)), lambda: damaged(scaled_weight(2.0))),
    "lone-quantize": (lambda: damaged(unread_quantize), lambda: damaged(integer_output)),
    "lone-dequantize": (lambda: damaged(lone_dequantize), lambda: damaged(integer_input)),
    "duplicate-pair": (lambda: damaged(twice), good),
    "unequal-halves": (lambda: damaged(unequal), lambda: damaged(equal_by_another_name)),
    "fp32-refused": (lambda: product("float"), lambda: product("float16")),
    "fp32-layers": (lambda: between("Relu", "float"), lambda: between("Relu", "float16")),
    "fp32-island": (lambda: between("MaxPool", cast=True), lambda: between("Sigmoid", cast=True)),
    "cancelling-casts": (lambda: cast_back("float16"), lambda: cast_back("float")),
    "scale-float-type": (lambda: paired_product(1), lambda: paired_product(10)),
}
#: Codes that only a build gives.
BUILT = {"engine-refuses", "engine-float", "engine-kernel"}


def find_problems(model: Model, **options: Any) -> tuple[Finding, ...]:
    """Return the findings for TensorRT-RTX on SM 8.6."""
    return qdq.check(model, targets=options.pop("targets", (SM86,)), **options)


def targets_of(code: str) -> tuple[Target, ...]:
    """Return what a code's models are checked for: FP8 needs SM 8.9, and TensorRT-RTX has no INT8 average pool on SM 8.6."""
    return {
        "element-type": (parse_target("rtx:sm89"),),
        "pool-in-float": (parse_target("rtx:sm120"),),
        "fp32-refused": (parse_target("rtx:sm75"),),
        "fp32-layers": (parse_target("rtx:sm75"),),
    }.get(code, (SM86,))


def test_every_code_has_a_model() -> None:
    assert MODELS.keys() | BUILT == PROBLEMS.keys()
    assert not MODELS.keys() & BUILT


@pytest.mark.parametrize("code", MODELS)
def test_a_code_is_found_where_it_is_and_not_in_a_near_miss(code: str) -> None:
    with_it, without_it = MODELS[code]
    findings = [f for f in find_problems(with_it(), targets=targets_of(code)) if f.code == code]
    assert findings
    assert code not in {f.code for f in find_problems(without_it(), targets=targets_of(code))}
    problem = PROBLEMS[code]
    for finding in findings:
        assert (finding.severity, finding.cost, finding.page) == (
            problem.severity,
            problem.cost,
            locate_page("findings", code),
        )
        assert "\n" not in str(finding)
        assert finding.problem
        assert finding.fix


def test_each_model_has_no_findings_but_its_own() -> None:
    alone = {
        "opset",
        "default-axis",
        "half-quantized",
        "element-type",
        "saturated-weights",
        "no-kernel",
        "fp32-island",
        "cancelling-casts",
    }
    for code, (with_it, _) in MODELS.items():
        if code not in alone:
            assert {f.code for f in find_problems(with_it(), targets=targets_of(code))} == {code}, (
                code
            )
    assert {f.code for f in find_problems(MODELS["half-quantized"][0]())} == {"half-quantized"}


@pytest.mark.parametrize(
    "op", ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"]
)
def test_each_operator_that_tensorrt_lacks_is_one_finding_and_refused(op: str) -> None:
    model = quantized_by_operator(op)
    assert [(f.code, f.node) for f in find_problems(model)] == [("unsupported-operator", "op")]
    assert built(model).failure


# --- the engines of the models ----------------------------------------------------------------------------------------


def built(model: Model) -> Engine:
    """Return the engine that TensorRT-RTX makes for SM 8.6."""
    with Compiler() as compiler:
        return compiler.build(model, SM86)


def in_int8(model: Model) -> dict[str, bool]:
    """Return whether each weighted node runs in INT8."""
    engine = built(model)
    assert not engine.failure
    weighted = [
        n.name for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    ]
    return {
        name: any(layer.multiplies("Int8") for layer in engine.layers if name in layer.nodes)
        for name in weighted
    }


#: The message of the parser, or the end of the compiler.
REFUSALS = {
    "zero-point": "Non-zero zero point is not supported",
    "scale-not-positive": "Scale coefficients must all be positive",
    "scale-count": "number of scales is not equal to the number of output channels",
    "scale-not-constant": "crashed",
    "scale-type": "must be of same type",
    "int32-dequantize": "has type Int32 but must have type",
    "unsupported-operator": "QLinearConv",
    "unsupported-type": "Failed to import initializer",
    "stored-integers": "only allowed before DQ",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_tensorrt_rtx_refuses_what_the_code_says_and_takes_the_near_miss(code: str) -> None:
    with_it, without_it = MODELS[code]
    assert REFUSALS[code] in built(with_it()).failure
    assert not built(without_it()).failure


@pytest.mark.parametrize(
    "damage",
    [zero_in_channel_scales, one_zero_point, no_axis, stored_unsigned, lambda _: scalar(np.int8)],
)
def test_other_forms_of_what_the_parser_refuses(damage: Damage) -> None:
    model = damaged(damage)
    assert built(model).failure
    assert {f.severity for f in find_problems(model)} >= {ERROR}


def test_a_scalar_that_is_stored_as_a_float_is_none() -> None:
    assert find_problems(scalar(np.float32)) == ()
    assert not built(scalar(np.float32)).failure
    assert [f.node for f in find_problems(scalar(np.int8)) if f.code == "stored-integers"] == [
        "scalar"
    ]


#: Codes of layers that run in float, and the layer.
IN_FLOAT = {
    "channel-scales": "first",
    "wrong-axis": "first",
    "half-quantized": "first",
    "default-axis": "first",
    "unequal-scales": "conv",
    "no-kernel": "up",
    "missing-pair": "second",
}


@pytest.mark.parametrize("code", IN_FLOAT)
def test_tensorrt_rtx_runs_in_float_what_the_code_says(code: str) -> None:
    ran = in_int8(MODELS[code][0]())
    assert [name for name, int8 in ran.items() if not int8] == [IN_FLOAT[code]]


@pytest.mark.parametrize(
    "damage",
    [
        without_pair,
        float_weight,
        lambda m: (reading(m, "first").input.__setitem__(0, "x"), drop(m, "x_q", "x_dq"), None)[2],
    ],
)
def test_each_half_of_a_quantized_layer_alone_runs_in_float(damage: Damage) -> None:
    model = damaged(damage)
    assert [f.code for f in find_problems(model)] == ["half-quantized"]
    assert sum(in_int8(model).values()) == 1


#: Codes that leave every layer in INT8: misread, or no matter of speed.
STILL_INT8 = (
    "uint8",
    "no-zero-point",
    "weight-per-tensor",
    "tiny-scale",
    "duplicate-pair",
    "unequal-halves",
    "opset",
    "pair-on-output",
    "pair-in-fusion",
)


@pytest.mark.parametrize("code", STILL_INT8)
def test_tensorrt_rtx_builds_these_and_says_nothing(code: str) -> None:
    assert all(in_int8(MODELS[code][0]()).values())


@pytest.mark.parametrize(
    "code",
    sorted(
        MODELS.keys()
        - REFUSALS.keys()
        - {"not-quantized", "element-type", "no-kernel", "half-quantized", "lone-dequantize"}
    ),
)
def test_no_other_model_is_refused(code: str) -> None:
    assert not built(MODELS[code][0]()).failure


# --- pairs on other edges with the same effect --------------------------------------------------------------------------


def moved(
    op: str,
    shape: tuple[int, ...],
    after: int,
    inputs: dict[str, Array] | None = None,
    **attributes: Any,
) -> Model:
    """Return a quantized tensor, an operator that commutes with quantization, and a MatMul or Conv of its result."""
    net = Network()
    convolution = len(shape) == 4 and op not in ("Reshape", "Flatten")
    weight = net.weight("w", 32, after, 1, 1) if convolution else net.weight("w", after, 32, axis=1)
    outputs = ["m", "rest"] if op == "Split" else "m"
    nodes = [
        *net.pair("x"), *weight, node(op, ["x_dq", *(inputs or {})], outputs, name="move", **attributes),
        node("Conv" if convolution else "MatMul", ["m", "w_dq"], "y", name="product"),
    ]  # fmt: skip
    return build(nodes, {"x": shape}, ["y"], net.constants | (inputs or {}))


SAME = {
    "MaxPool": lambda: moved("MaxPool", (1, 32, 8, 8), 32, kernel_shape=[2, 2], strides=[2, 2]),
    "Reshape": lambda: moved("Reshape", (4, 16, 8, 8), 64, {"to": np.array([4, 16, 64])}),
    "Transpose": lambda: moved("Transpose", (4, 64, 16), 64, perm=[0, 2, 1]),
    "Slice": lambda: moved(
        "Slice",
        (4, 16, 96),
        64,
        {"start": np.array([0]), "end": np.array([64]), "axes": np.array([2])},
    ),
    "Gather": lambda: moved("Gather", (4, 16, 64), 64, {"rows": np.arange(8)}, axis=1),
    "Split": lambda: moved("Split", (4, 16, 128), 64, axis=2),
    "DepthToSpace": lambda: moved("DepthToSpace", (1, 128, 8, 8), 32, blocksize=2),
    "Pad": lambda: moved("Pad", (1, 32, 8, 8), 32, {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "Expand": lambda: moved("Expand", (1, 16, 64), 64, {"to": np.array([4, 16, 64])}),
    "Squeeze": lambda: moved("Squeeze", (4, 1, 16, 64), 64, {"axes": np.array([1])}),
}


def weight_before(op: str) -> Model:
    """Return a weight that is quantized in front of a Transpose, along the axis that becomes the output channels."""
    net = Network()
    nodes = [
        *net.pair("x"),
        *net.weight("w", 32, 64),
        node(op, ["w_dq"], "wt", name="turn", perm=[1, 0]),
        node("MatMul", ["x_dq", "wt"], "y", name="product"),
    ]
    return build(nodes, {"x": [4, 16, 64]}, ["y"], net.constants)


@pytest.mark.parametrize("op", [op for op in SAME if op != "Squeeze"])
def test_a_pair_in_front_of_an_operator_that_commutes_is_no_finding_for_the_engine_multiplies_in_int8(
    op: str,
) -> None:
    model = SAME[op]()
    assert find_problems(model) == ()
    assert in_int8(model) == {"product": True}


def test_a_weight_that_is_turned_behind_its_pair_is_none_either() -> None:
    model = weight_before("Transpose")
    assert find_problems(model) == ()
    assert in_int8(model) == {"product": True}


def test_resize_does_not_carry_a_pair() -> None:
    model = moved(
        "Resize",
        (1, 32, 8, 8),
        32,
        {"roi": np.array([], np.float32), "twice": np.array([1, 1, 2, 2], np.float32)},
        mode="nearest",
    )
    assert {f.code for f in find_problems(model)} == {"half-quantized", "unwanted-pair"}
    assert in_int8(model) == {"product": False}


@pytest.mark.parametrize("pair_after", [False, True])
def test_a_concat_of_one_scale_carries_the_pairs_of_its_inputs(pair_after: bool) -> None:
    model = joined(0.05, pair_after)
    assert find_problems(model) == ()
    assert in_int8(model) == {"conv": True}


def test_a_concat_of_two_scales_with_a_pair_behind_it_is_told_too() -> None:
    model = joined(0.08, pair_after=True)
    assert {f.code for f in find_problems(model)} == {"unequal-scales"}


def test_pairs_on_both_sides_of_a_pool_cost_nothing_where_their_scale_is_the_same() -> None:
    net = Network()
    nodes = [
        *net.pair("x"), node("MaxPool", ["x_dq"], "m", name="pool", kernel_shape=[2, 2]), *net.pair("m"),
        *net.weight("w", 32, 32, 1, 1), node("Conv", ["m_dq", "w_dq"], "y", name="conv"),
    ]  # fmt: skip
    assert find_problems(build(nodes, {"x": [1, 32, 8, 8]}, ["y"], net.constants)) == ()
    net.constants["m_s"] = np.array(0.07, np.float32)
    assert {
        f.code for f in find_problems(build(nodes, {"x": [1, 32, 8, 8]}, ["y"], net.constants))
    } == {"unequal-scales"}


def test_a_pair_on_a_graph_output_is_told_by_the_layer_in_front() -> None:
    (only,) = find_problems(damaged(paired_output))
    assert only.code == "pair-on-output"
    assert "'y_dq'" in only.problem
    assert "'second'" in only.problem


def test_several_weights_of_one_scale_are_one_note() -> None:
    model = damaged(one_scale_for_weight)
    store(model, "v_s", np.array(0.02, np.float32))
    store(model, "v_z", np.array(0, np.int8))
    for output in ("v_q", "v_dq"):
        del made_by(model, output).attribute[:]
    (only,) = (f for f in find_problems(model) if f.code == "weight-per-tensor")
    assert "1 more weights" in only.problem


def test_weights_of_integers_are_judged_as_they_are_stored() -> None:
    assert find_problems(stored_as_integers(good(), "w", "v")) == ()
    ends = stored_as_integers(good(), "w")
    store(
        ends, "w_q", np.where(np.arange(108).reshape(4, 3, 3, 3) % 5 == 0, 127, 5).astype(np.int8)
    )
    assert {f.code for f in find_problems(ends)} == {"saturated-weights"}
    unused = stored_as_integers(good(), "w")
    store(unused, "w_q", (initializer(unused, "w_q") // 8).astype(np.int8))
    assert {f.code for f in find_problems(unused)} == {"weight-scale"}


def test_a_weight_without_channels_has_no_findings() -> None:
    model = damaged()
    store(model, "w", np.zeros((0, 3, 3, 3), np.float32))
    store(model, "w_s", np.zeros(0, np.float32))
    store(model, "w_z", np.zeros(0, np.int8))
    assert list(check_weight_scales(QuantizedModel(model))) == []


def half_precision(opset: int, kind: int) -> Model:
    """Return a Conv with pairs of a float type of 16 bits on its input and its weight."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = noise(4, 3, 3, 3)
    weights = {
        "w": weight.astype(dtype), "s": np.array(0.02, dtype), "z": np.array(0, np.int8),
        "ws": (np.abs(weight).max((1, 2, 3)) / 127).astype(dtype), "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = []
    for name, scale, zero, axis in (("x", "s", "z", {}), ("w", "ws", "wz", {"axis": 0})):
        nodes += [
            node("QuantizeLinear", [name, scale, zero], f"{name}_q", **axis),
            node("DequantizeLinear", [f"{name}_q", scale, zero], f"{name}_d", **axis),
        ]
    nodes.append(node("Conv", ["x_d", "w_d"], "y", name="conv"))
    return build(
        nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 4, 4, 4]}, weights, opset=opset, ir=9, dtype=kind
    )


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16"])
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_pairs_of_16_bit_floats_need_opset_19(kind: str, opset: int) -> None:
    code = getattr(TensorProto, kind)
    (finding,) = (f for f in qdq.check(half_precision(opset, code)) if f.code == "opset")
    assert finding.problem == f"the model has opset {opset}; QuantizeLinear of {kind} needs 19"
    assert "repair it with qdq quantize" in finding.fix
    assert not [f for f in qdq.check(half_precision(19, code)) if f.code == "opset"]


@pytest.mark.parametrize(
    ("kind", "needed"), [("FLOAT8E4M3FN", 19), ("INT4", 21), ("INT16", 21), ("UINT16", 21)]
)
def test_types_of_a_later_opset_are_found_in_an_earlier_one(kind: str, needed: int) -> None:
    def set_type(model: Model) -> None:
        for name in ("x_z", "r_z"):
            store(model, name, None)
            tensor = helper.make_tensor(name, getattr(TensorProto, kind), [], [0])
            model.graph.initializer.append(tensor)

    before, after = damaged(set_type, at_opset(needed - 1)), damaged(set_type, at_opset(needed))
    problems = [f.problem for f in find_problems(before) if f.code == "opset"]
    assert problems == [f"the model has opset {needed - 1}; {kind} needs {needed}"]
    assert not [f for f in find_problems(after) if f.code == "opset"]


def test_fixing_raises_the_opset(tmp_path: Path) -> None:
    path = save(half_precision(17, TensorProto.FLOAT16), tmp_path / "m.onnx")
    code, text, _ = run("check", "--fix", path)
    assert code == 0
    assert "fixed: opset raised from 17 to 19" in text
    assert qdq.check(path) == ()
    onnx.checker.check_model(str(path), full_check=True)


def test_weights_are_not_read_where_they_need_not_be() -> None:
    assert find_problems(clipped_weight(0.1), weights=False) == ()
