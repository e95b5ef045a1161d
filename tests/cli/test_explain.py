"""`qdq explain` of the float part: why a node stays in FP32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import qdq
from qdq.ranges.range_file import write_ranges
from tests.support.cli_runner import refused, run, save
from tests.support.float_models import parse
from tests.support.graphs import noise


def model() -> onnx.ModelProto:
    """Return a product, an Exp that a rule keeps in FP32, and a sum."""
    text = """
    g (float[2,8] x) => (float[2,8] y) {
      [product] p = MatMul (x, w)
      [exp] e = Exp (p)
      [sum] y = Add (e, p)
    }"""
    return parse(text, w=noise(8, 8))


def test_a_node_that_a_rule_keeps_is_explained_by_the_rule(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    code, text, _ = run("explain", path, "exp", "--float", "fp16")
    assert code == 0
    assert "Exp exp\n  compute in FP32: powers-and-exponentials\n" in text
    assert "  because: Exp overflows FP16 above 11.1" in text
    assert "  evidence: exp(11.1) is 66171" in text


def test_without_a_float_type_only_pairs_are_explained(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    text = run("explain", path, "product")[1]
    assert "quantize (int8-activation)" in text
    assert "compute in" not in text


def test_a_target_implies_the_float_type(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    text = run("explain", path, "product", "--target", "rtx:sm75")[1]
    assert "MatMul product\n  compute in FP16\n  No rule keeps it in FP32." in text
    assert "quantize (int8-activation)" in text


@pytest.mark.parametrize("has_pairs", [False, True])
def test_a_cast_model_is_explained_by_what_it_records(tmp_path: Path, has_pairs: bool) -> None:
    float_model = model()
    if has_pairs:
        float_model = qdq.quantize(float_model, [{"x": noise(2, 8)}]).model
    path = save(qdq.cast(float_model, keep_fp32="sum").model, tmp_path / "m.onnx")

    answer = json.loads(run("explain", path, "sum", "--format", "json")[1])

    (explanation,) = answer["floats"]
    assert (explanation["decision"], explanation["rule"]) == ("fp32", "--keep-fp32 sum")
    assert answer["explanations"]


def test_a_tensor_names_the_nodes_that_compute_and_read_it(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    options = ("--float", "bf16", "--format", "json")
    answer = json.loads(run("explain", path, "p", *options)[1])
    assert [item["node"] for item in answer["floats"]] == ["product", "exp", "sum"]
    assert {item["decision"] for item in answer["floats"]} == {"bf16", "fp32"}


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    message = refused(tmp_path, "explain", path, "prodct", "--float", "fp16")
    assert "the model has no node or tensor 'prodct'" in message
    assert "'product'" in message


def test_extremes_decide_and_are_shown(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    ranges = tmp_path / "m.ranges"
    feeds = [{"x": np.full((2, 8), 1e5, np.float32)}]
    write_ranges(ranges, qdq.observe(model(), qdq.plan(model()), feeds))

    text = run("explain", path, "product", "--float", "fp16", "--ranges", ranges)[1]

    assert "compute in FP32: overflowing-values" in text
    assert "largest value that it reads or writes: 100000" in text
    assert "compute in FP16" in run("explain", path, "product", "--float", "fp16")[1]


def test_ranges_without_a_float_type_are_refused(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    (tmp_path / "m.ranges").write_text("{}")
    message = refused(tmp_path, "explain", path, "exp", "--ranges", tmp_path / "m.ranges")
    assert "--ranges: pairs are planned without ranges. Pass --float fp16 with it." in message
