"""The ranking of nodes by the noise that they make in 16 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import qdq
from qdq.pipeline.float_sensitivity import measure_float_sensitivity
from tests.support.cli_runner import refused, run, save
from tests.support.float_models import parse
from tests.support.graphs import noise


def model() -> onnx.ModelProto:
    """Return a square of values around 300, which overflows FP16, between harmless nodes."""
    text = """
    g (float[2,8] x) => (float[2,8] y) {
      [product] p = MatMul (x, w)
      [square] s = Mul (p, p)
      [shrink] t = Mul (s, k)
      [end] y = Relu (t)
    }"""
    return parse(text, w=np.eye(8, dtype=np.float32), k=np.array(1e-3, np.float32))


SAMPLES = [{"x": 300 + noise(2, 8)}]


def test_the_node_that_overflows_is_first() -> None:
    result = measure_float_sensitivity(model(), SAMPLES)
    first, second, *_ = result.nodes
    assert {first.node, second.node} == {"square", "shrink"}
    assert first.snr_db < 0
    assert {"product", "end"} == {node.node for node in result.nodes if node.snr_db > 50}


def test_what_the_extremes_keep_makes_the_cast_exact() -> None:
    result = measure_float_sensitivity(model(), SAMPLES)
    kept = {node.node: node.kept for node in result.nodes}
    assert kept["square"] == "overflowing-values"
    assert result.cast_snr_db > 50 > result.all_snr_db


def test_bf16_has_the_range_but_not_the_precision() -> None:
    result = measure_float_sensitivity(model(), SAMPLES, "bf16")
    assert {node.kept for node in result.nodes} == {""}
    assert 30 < result.all_snr_db < 60


def test_the_most_extreme_nodes_are_measured() -> None:
    (node,) = measure_float_sensitivity(model(), SAMPLES, most=1).nodes
    assert node.node == "square"


def test_fp32_is_refused() -> None:
    with pytest.raises(qdq.QdqError, match="Pass fp16 or bf16"):
        measure_float_sensitivity(model(), SAMPLES, "fp32")


def test_the_command_ranks_the_nodes(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=SAMPLES[0]["x"])
    code, text, _ = run("sensitivity", path, "--data", tmp_path / "s.npz", "--float", "fp16")
    assert code == 0
    assert "\n\nFP16 of " in text
    assert "overflowing-values" in text

    options = ("--data", tmp_path / "s.npz", "--float", "bf16", "--format", "json", "--top", 2)
    answer = json.loads(run("sensitivity", path, *options)[1])
    assert (answer["to"], len(answer["nodes"])) == ("bf16", 2)


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    path = save(model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=SAMPLES[0]["x"])
    options = ("--data", tmp_path / "s.npz", "--float", "fp16", "--metric", "top1")
    assert "Drop QUANTIZED, --metric and --plot" in refused(tmp_path, "sensitivity", path, *options)
