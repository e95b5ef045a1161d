"""The largest values of tensors, which decide what overflows FP16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, parser

import qdq
from qdq.errors import QdqError
from tests.support.cli_runner import refused, run, save


def squaring_model() -> ModelProto:
    """Return a sum, its product with itself and a scaled result."""
    return parser.parse_model("""
    <ir_version: 10, opset_import: ["": 19]>
    g (float[1,2] x) => (float[1,2] y)
    <float[2] one = {1, 1}, float[2] small = {0.001, 0.001}>
    { [sum] s = Add (x, one)
      [square] q = Mul (s, s)
      [scaled] y = Mul (q, small) }
    """)


def test_the_largest_of_all_samples_counts_and_outputs_too() -> None:
    samples = [{"x": np.float32([[299, 1]])}, {"x": np.float32([[1, -401]])}]

    extremes = qdq.measure_extremes(squaring_model(), samples)

    assert extremes == pytest.approx({"x": 401.0, "s": 400.0, "q": 160000.0, "y": 160.0})


def test_infinite_values_are_left_out() -> None:
    extremes = qdq.measure_extremes(squaring_model(), [{"x": np.float32([[3e38, 1]])}])

    assert extremes["q"] == 4.0


def test_cast_keeps_what_overflows_on_the_samples(tmp_path: Path) -> None:
    model = save(squaring_model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.float32([[299, 1]]))

    code, output, _ = run("cast", model, "-o", tmp_path / "h.onnx", "--data", tmp_path / "data.npz")

    assert code == 0
    assert "the ranges of 4 tensors were checked for overflow" in output
    assert "overflowing-values" in output


def test_samples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = save(squaring_model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", z=np.zeros((1, 2), np.float32))

    message = refused(
        tmp_path, "cast", model, "-o", tmp_path / "h.onnx", "--data", tmp_path / "data.npz"
    )

    assert "'x'" in message
    with pytest.raises(QdqError, match="'x'"):
        qdq.measure_extremes(squaring_model(), [{"z": np.zeros((1, 2), np.float32)}])
