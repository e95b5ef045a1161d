"""FP16 tensors that overflow where ONNX Runtime's outputs do not show it."""

from __future__ import annotations

import numpy as np
import onnx

import qdq
from qdq.reports.validation_sections import accuracy_section
from qdq.validation.accuracy import Accuracy
from tests.support.float_models import parse
from tests.support.graphs import Array, noise

SQUARE = """
g (float[2,8] x) => (float[2,8] y) {
  [product] p = MatMul (x, w)
  [square] s = Mul (p, p)
  [small] t = Mul (s, c)
  [shift] u = Add (t, c)
  [y] y = Relu (u)
}"""
LARGE: list[dict[str, Array]] = [{"x": np.full((2, 8), 300, np.float32)}]
SMALL: list[dict[str, Array]] = [{"x": np.full((2, 8), 3, np.float32)}]


def square() -> onnx.ModelProto:
    return parse(SQUARE, w=noise(8, 8), c=np.array(1e-4, np.float32))


def measure(
    model: onnx.ModelProto, changed: onnx.ModelProto, data: list[dict[str, Array]]
) -> Accuracy:
    accuracy = qdq.validate(model, changed, data=data).accuracy
    assert accuracy is not None
    return accuracy


def test_the_node_that_overflows_is_named() -> None:
    model = square()
    accuracy = measure(model, qdq.cast(model).model, LARGE)

    assert accuracy.outputs[0].snr_db > 60  # the outputs do not show it
    overflows = accuracy.overflows or ()
    assert [(item.tensor, item.node, item.operator) for item in overflows] == [
        ("s", "square", "Mul")
    ]
    assert (
        accuracy_section(accuracy)
        .lines[1]
        .startswith("Mul square: the result is infinite in FP16, which the figures do not show")
    )


def test_a_cast_by_ranges_does_not_overflow() -> None:
    model = square()
    cast_model = qdq.cast(model, amax={"s": 2e5, "p": 5e2}).model
    assert not measure(model, cast_model, LARGE).overflows


def test_nothing_overflows_in_small_values_and_in_fp32() -> None:
    model = square()
    assert not measure(model, qdq.cast(model).model, SMALL).overflows
    assert not measure(model, model, LARGE).overflows


def test_a_cast_to_fp16_that_overflows_is_named() -> None:
    text = SQUARE.replace("Mul (s, c)", "MatMul (s, v)")
    model = parse(text, w=noise(8, 8), v=noise(8, 8) / 1000, c=np.array(1e-4, np.float32))
    changed = qdq.cast(model, keep_fp32="square").model
    (overflow,) = measure(model, changed, LARGE).overflows or ()
    assert (overflow.operator, overflow.tensor) == ("Cast", "s_float16")


def test_infinite_values_of_the_float_model_are_no_overflow() -> None:
    text = """
    g (float[2,8] x) => (float[2,8] y) {
      [p] p = MatMul (x, w)
      [q] q = Relu (p)
      [z] z = Mul (q, c)
      [log] l = Log (z)
      [y] y = Max (l, p)
    }"""
    model = parse(text, w=noise(8, 8), c=np.array(0, np.float32))
    assert not measure(model, qdq.cast(model).model, SMALL).overflows
