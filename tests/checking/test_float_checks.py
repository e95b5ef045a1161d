"""What `check` finds in the float part: Casts, parts in float32, layers that a target refuses."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest

import qdq
from tests.support.float_models import between, cast_back, paired_product, parse, product
from tests.support.graphs import noise

FLOAT_CODES = {
    "fp32-refused",
    "fp32-layers",
    "fp32-island",
    "cancelling-casts",
    "scale-float-type",
}


def find_float(model: onnx.ModelProto, targets: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Return the code and the node of each finding about the float part."""
    findings = qdq.check(model, targets=tuple(targets))
    return [(item.code, item.node) for item in findings if item.code in FLOAT_CODES]


def test_only_casts_that_lose_nothing_cancel() -> None:
    assert find_float(cast_back("float16")) == [("cancelling-casts", "back")]
    assert find_float(cast_back("float")) == []


@pytest.mark.parametrize(
    ("first", "second", "cancels"),
    [(1, 10, True), (11, 10, True), (16, 10, False), (10, 10, False), (1, 16, False)],
)
def test_a_pair_of_casts_cancels_if_the_type_between_holds_all_values(
    first: int, second: int, cancels: bool
) -> None:
    model = cast_back("float16")
    model.graph.node[0].attribute[0].i = first
    model.graph.node[1].attribute[0].i = second
    model.graph.output[0].type.tensor_type.elem_type = second
    assert bool(find_float(model)) == cancels


def test_the_cast_of_an_output_stays() -> None:
    model = parse("""
    g (float16[2,8] x) => (float16[2,8] y) {
      other = Cast <to = 1> (x)
      y = Cast <to = 10> (other)
    }""")
    assert find_float(model) == []


def test_casts_in_bodies_are_found() -> None:
    model = parse("""
    g (bool c, float16[2] x) => (float16[2] y) {
      [branch] y = If (c) <
        then_branch = t () => (float16[2] a) {
          wide = Cast <to = 1> (x)
          [back] short = Cast <to = 10> (wide)
          a = Relu (short)
        },
        else_branch = e () => (float16[2] b) { b = Neg (x) }
      >
    }""")
    assert find_float(model) == [("cancelling-casts", "branch.then_branch/back")]


def test_a_pool_in_fp32_between_fp16_layers_is_an_island() -> None:
    (finding,) = (f for f in qdq.check(between("MaxPool", cast=True)) if f.code == "fp32-island")
    assert finding.node == "middle"
    assert "MaxPool" in finding.problem
    assert "float32 between nodes in FP16" in finding.problem
    assert "qdq cast MODEL -o OUTPUT --to fp16" in finding.fix


@pytest.mark.parametrize("operator", ["Sigmoid", "Relu"])
def test_what_the_compiler_fuses_is_no_island(operator: str) -> None:
    assert find_float(between(operator, cast=True)) == []


def test_a_model_in_fp32_has_no_islands() -> None:
    assert find_float(between("MaxPool", "float")) == []


def test_what_the_suggested_command_writes_has_no_island() -> None:
    fixed = qdq.cast(between("MaxPool", cast=True))
    assert find_float(fixed.model) == []


def test_a_node_that_a_cast_kept_on_request_is_no_island() -> None:
    model = qdq.cast(between("MaxPool", "float"), keep_fp32="middle").model
    assert any(node.op_type == "Cast" for node in model.graph.node)
    assert find_float(model) == []


def test_a_node_that_a_rule_keeps_is_no_island() -> None:
    """An Exp is kept by a rule, and the Concat moves values from and to it."""
    text = """
    g (float16[1,8,6,6] x) => (float16[1,16,6,6] y) {
      a = Conv (x, w)
      wide = Cast <to = 1> (a)
      e = Exp (wide)
      [join] two = Concat <axis = 1> (e, e)
      f = OPERATOR (two)
      b = Cast <to = 10> (f)
      y = Conv (b, v)
    }"""
    weights = {"w": noise(8, 8, 1, 1), "v": noise(16, 16, 1, 1)}
    stored = {name: values.astype(np.float16) for name, values in weights.items()}
    assert find_float(parse(text.replace("OPERATOR", "Exp"), **stored)) == []


def test_products_of_other_scales_are_found_and_convolutions_are_not() -> None:
    model = paired_product(1)
    (finding,) = (f for f in qdq.check(model) if f.code == "scale-float-type")
    assert finding.node == "product"
    assert "'x_dq' and 'w_dq'" in finding.problem
    assert "--scales fp32" in finding.fix
    assert find_float(qdq.cast(model).model) == []


def test_scales_that_were_asked_for_are_not_found() -> None:
    model = qdq.cast(paired_product(1), scales="fp32").model
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert types["x_s"] == onnx.TensorProto.FLOAT
    assert find_float(model) == []


@pytest.mark.parametrize("targets", [("rtx:sm75",), ("rtx:sm86", "rtx:sm75")])
def test_a_gemm_in_fp32_does_not_build_for_sm75(targets: tuple[str, ...]) -> None:
    model = product("float")
    (finding,) = (f for f in qdq.check(model, targets=targets) if f.code == "fp32-refused")
    assert finding.severity == "error"
    assert finding.problem.startswith("rtx:sm75: the Gemm 'fc' computes in float32")
    assert "FP32 GEMM is not supported" in finding.problem
    assert find_float(qdq.cast(model).model, targets) == []


@pytest.mark.parametrize("target", ["rtx:sm86", "trt:sm75", "trt:sm80"])
def test_other_targets_build_fp32(target: str) -> None:
    assert find_float(product("float"), [target]) == []
    assert find_float(between("Relu", "float"), [target]) == []


def test_convolutions_in_fp32_are_counted_for_sm75() -> None:
    model = between("Relu", "float")
    (finding,) = (f for f in qdq.check(model, targets="rtx:sm75") if f.code == "fp32-layers")
    assert finding.problem == (
        "rtx:sm75: 2 layers, the first of them the Conv 'first', compute in float32"
    )


@pytest.mark.parametrize("scales", ["float", "fp32"])
@pytest.mark.parametrize("model", ["float", "float16"])
def test_what_quantize_writes_has_no_finding(model: str, scales: str) -> None:
    """A float model of either type, with the float part in FP16."""
    float_model = between("MaxPool", model)
    options = qdq.FloatOptions("fp16", scales=scales)
    dtype = np.float32 if model == "float" else np.float16
    samples = [{"x": noise(1, 8, 6, 6).astype(dtype)}]
    result = qdq.quantize(float_model, samples, float_type=options, targets="rtx:sm86")
    assert qdq.check(result.model) == ()
