"""The first lines of `quantize` and `validate` on rtx targets: the quantized file beside FP16."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest

from qdq import optional_packages
from qdq.cli import file_choices
from tests.support.cli_runner import run, save, tiny_model
from tests.support.paths import ROOT

CNN = ROOT / "fixtures" / "networks" / "digits_cnn.onnx"

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@needs_compiler
def test_both_commands_begin_with_the_choice_and_its_command_works(tmp_path: Path) -> None:
    model = save(onnx.load(CNN), tmp_path / "net.onnx")
    out = tmp_path / "net.int8.onnx"
    target = ("--target", "rtx:sm86")

    _, quantized, _ = run("quantize", model, "-o", out, "--data", "noise", *target)
    _, validated, _ = run("validate", model, out, *target)

    result, choice = (section.splitlines() for section in quantized.split("\n\n")[:2])
    assert result[0] == "Result"
    assert result[2].startswith("  warning: for rtx:sm86 the INT8 engine is larger than")
    lines = choice
    assert lines[0] == "INT8 or FP16"
    assert lines[1].startswith("  rtx:sm86: INT8 moves ")
    result, choice = (section.splitlines() for section in validated.split("\n\n")[:2])
    assert result[3].startswith("  warning: for rtx:sm86 the INT8 engine is larger than")
    assert choice == lines
    command = f"qdq cast {model} -o {tmp_path / 'net.fp16.onnx'}"
    assert lines[3] == f"  for rtx:sm86 use: {command}"
    assert f"next: {command}  # the smallest engine for rtx:sm86" in quantized.splitlines()
    assert run(*command.split()[1:])[0] == 0


@needs_compiler
def test_json_has_the_engines_of_all_files(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    out = tmp_path / "q.onnx"
    options = ("--target", "rtx:sm86", "--format", "json")

    _, output, _ = run("quantize", model, "-o", out, "--data", "noise", *options)

    (choice,) = json.loads(output)["file_choices"]
    assert [engine["file"] for engine in choice["files"]] == ["quantized", "fp16", "quantized-fp16"]
    assert choice["files"][2]["command"] == f"qdq quantize {model} ... --float fp16"
    assert choice["smallest"] in {engine["file"] for engine in choice["files"]}


@needs_compiler
def test_the_commands_for_a_model_that_was_quantized_strip_it_first(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    first = tmp_path / "q.onnx"
    options = ("--target", "rtx:sm86", "--format", "json")
    run("quantize", model, "-o", first, "--data", "noise")

    _, output, _ = run("quantize", first, "-o", tmp_path / "r.onnx", *options)

    (choice,) = json.loads(output)["file_choices"]
    assert choice["files"][1]["command"] == (
        f"qdq strip {first} -o {tmp_path / 'q.float.onnx'} && "
        f"qdq cast {tmp_path / 'q.float.onnx'} -o {tmp_path / 'q.float.fp16.onnx'}"
    )


@needs_compiler
@pytest.mark.parametrize(
    ("limit", "most"), [("MOST_UNASKED_BYTES", 100), ("MOST_UNASKED_NODES", 3)]
)
def test_a_large_model_gets_a_command_unless_it_is_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    out = tmp_path / "q.onnx"
    monkeypatch.setattr(file_choices, limit, most)
    options = ("--data", "noise", "--target", "rtx:sm86", "--force")

    _, output, _ = run("quantize", model, "-o", out, *options)
    _, validated, _ = run("quantize", model, "-o", out, *options, "--validate")

    command = f"qdq validate {model} {out} --target=rtx:sm86 --shapes=x=1x4x8x8"
    choice, validated_choice = (text.split("\n\n")[1] for text in (output, validated))
    assert choice.splitlines()[1].endswith(f"to compare: {command}")
    assert validated_choice.splitlines()[1].startswith("  rtx:sm86: INT8 moves ")
    assert run(*command.split()[1:])[1].split("\n\n")[1] == validated_choice


def test_without_the_compiler_quantize_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    monkeypatch.setattr(optional_packages, "is_installed", lambda name: False)
    options = ("--data", "noise", "--target", "rtx:sm86")

    code, output, _ = run("quantize", model, "-o", tmp_path / "q.onnx", *options)

    assert code == 0
    titles = [section.splitlines()[0] for section in output.split("\n\n")[:2]]
    assert titles == ["Result", "Plan"]
