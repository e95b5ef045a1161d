"""`qdq strip`: what it says about the pairs that it removed."""

from __future__ import annotations

from pathlib import Path

import qdq
from tests.support.body_models import branching, samples
from tests.support.cli_runner import run, save


def test_pairs_in_bodies_are_counted(tmp_path: Path) -> None:
    quantized = qdq.quantize(branching(), samples(branching()))
    pairs = len(quantized.scales.by_pair)
    model = save(quantized.model, tmp_path / "quantized.onnx")
    code, output, _ = run("strip", model, "-o", tmp_path / "float.onnx")
    assert code == 0
    assert f"removed {pairs} of {pairs} pairs" in output
