"""The first and the last lines of `quantize`, and what `plan` prints about a plan that it wrote."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.support.cli_runner import refused, run, samples, save, tiny_model
from tests.support.defects import DEFECTS, good

TARGET = ("--target", "trt:sm80")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a model and samples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    save(tiny_model(), tmp_path / "tiny.onnx")
    samples(tmp_path / "d")
    return tmp_path


def find_steps(out: str) -> list[str]:
    """Return the commands that an output names to be next, which end it."""
    last = out.rsplit("\n\n", maxsplit=1)[-1].splitlines()
    assert all(line.startswith("next: qdq ") for line in last), out
    return [line.removeprefix("next: ") for line in last]


def test_the_result_is_first_and_the_next_commands_work(folder: Path) -> None:
    code, out, _ = run("quantize", "tiny.onnx", "-o", "o.onnx", "--data", "d", *TARGET)
    assert code == 0
    title, line, *_ = out.splitlines()
    assert (title, line.split(";")[0]) == ("Result", "  o.onnx: 4 edges in INT8")
    assert line.endswith(" dB signal-to-noise; no findings")
    steps = find_steps(out)
    assert (
        steps[0]
        == "qdq validate tiny.onnx o.onnx --data=d --target=trt:sm80  # accuracy and engines"
    )
    for step in steps:
        assert run(*shlex.split(step, comments=True)[1:])[0] in (0, 1)


def test_data_of_the_project_file_is_not_repeated(folder: Path) -> None:
    (folder / "qdq.yaml").write_text("data: d\ntargets: ['trt:sm80']\n")
    out = run("quantize", "tiny.onnx", "-o", "o.onnx")[1]
    assert find_steps(out)[0].startswith("qdq validate tiny.onnx o.onnx --target=trt:sm80 ")


def test_names_with_spaces_are_quoted(folder: Path) -> None:
    (folder / "tiny.onnx").rename("my net.onnx")
    out = run("quantize", "my net.onnx", "-o", "o.onnx", "--data", "d", *TARGET)[1]
    assert find_steps(out)[0].startswith("qdq validate 'my net.onnx' o.onnx ")


def test_a_missed_threshold_leads_to_the_sensitive_layers(folder: Path) -> None:
    words = (
        "tiny.onnx",
        "-o",
        "o.onnx",
        "--data",
        "d",
        *TARGET,
        "--validate",
        "--min-cosine",
        "0.9999999",
    )
    code, out, _ = run("quantize", *words)
    assert code == 1
    assert "; 1 missed" in out.splitlines()[1]
    assert find_steps(out)[0].startswith("qdq sensitivity tiny.onnx --data=d --target=trt:sm80")
    assert "qdq validate" not in out
    quiet = run("quantize", *words, "--force", "-q")[1]
    assert quiet.startswith("Missed\n  ")


def test_a_layer_that_stays_in_float_is_explained(folder: Path) -> None:
    words = ("tiny.onnx", "-o", "o.onnx", "--data", "d", *TARGET, "--leave-float", "gemm")
    out = run("quantize", *words)[1]
    assert find_steps(out)[-1] == "qdq explain o.onnx gemm  # why a layer stays in float"


def test_a_repaired_model_is_compared_with_the_one_before(folder: Path) -> None:
    model = good()
    DEFECTS["uint8"][0](model)
    save(model, folder / "uint8.onnx")
    out = run("quantize", "uint8.onnx", "-o", "o.onnx", *TARGET)[1]
    assert find_steps(out)[-1] == "qdq diff uint8.onnx o.onnx  # the pairs that changed"
    assert "accuracy not measured" in out.splitlines()[1]


def test_json_has_neither(folder: Path) -> None:
    out = run("quantize", "tiny.onnx", "-o", "o.onnx", "--data", "d", "--format", "json")[1]
    assert "next" not in json.loads(out)
    assert out.endswith("}\n")


# --- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_that_is_written_is_summed_up(folder: Path) -> None:
    whole = run("plan", "tiny.onnx", *TARGET)[1]
    out = run("plan", "tiny.onnx", *TARGET, "-o", "p.yaml")[1]
    summary = whole.split("\n\n")[0]
    assert out == f"{summary}\n\nwrote p.yaml\n"
    assert "Left in float\n" in whole


def test_the_json_of_a_plan_goes_to_a_report(folder: Path) -> None:
    whole = run("plan", "tiny.onnx", "--format", "json")[1]
    out = run("plan", "tiny.onnx", "-o", "p.yaml", "--report", "p.json")[1]
    assert Path("p.json").read_text() == whole
    assert out.endswith("\n\nwrote p.yaml, p.json\n")


def test_a_report_of_a_plan_has_what_is_printed(folder: Path) -> None:
    whole = run("plan", "tiny.onnx")[1]
    run("plan", "tiny.onnx", "--report", "p.txt")
    assert Path("p.txt").read_text() == whole
    run("plan", "tiny.onnx", "--report", "p.md")
    assert "## Quantized\n" in Path("p.md").read_text()


def test_reports_of_plans_are_checked_before_the_work(folder: Path) -> None:
    assert "the suffix chooses the format" in refused(
        folder, "plan", "tiny.onnx", "--report", "p.x"
    )
    (folder / "p.json").write_text("{}")
    assert "the file exists" in refused(folder, "plan", "tiny.onnx", "--report", "p.json")
