"""`qdq cast`: the file that it writes, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto

from tests.support.cli_runner import refused, run, save, tiny_model


def test_the_file_is_written_and_described(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")

    code, output, _ = run("cast", model, "-o", tmp_path / "h.onnx")

    assert code == 0
    assert output.startswith("FP16\n")
    assert "no ranges are known, so no activation was checked for overflow" in output
    types = {t.data_type for t in onnx.load(tmp_path / "h.onnx").graph.initializer}
    assert TensorProto.FLOAT16 in types


def test_casting_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    run("cast", model, "-o", tmp_path / "first.onnx")
    run("cast", tmp_path / "first.onnx", "-o", tmp_path / "second.onnx")

    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_json_holds_the_plan(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    options = ("--to", "bf16", "--keep-fp32", "*", "--format", "json")
    _, output, _ = run("cast", model, "-o", tmp_path / "h.onnx", *options)

    report = json.loads(output)

    assert report["plan"]["to"] == "bf16"
    assert {node["because"] for node in report["plan"]["kept"]} == {"--keep-fp32 *"}


def test_quantize_casts_what_stays_float(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    options = ("--data", "noise", "--float", "fp16", "--io", "fp16")
    _, output, _ = run("quantize", model, "-o", tmp_path / "q.onnx", *options)

    assert "what stays in float becomes FP16" in output
    (value,) = onnx.load(tmp_path / "q.onnx").graph.output
    assert value.type.tensor_type.elem_type == TensorProto.FLOAT16


def test_an_existing_file_is_refused(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    (tmp_path / "h.onnx").write_bytes(b"other")

    message = refused(tmp_path, "cast", model, "-o", tmp_path / "h.onnx")

    assert "the file exists" in message
