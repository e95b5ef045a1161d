"""What reports state about a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli_runner import run, samples, save, tiny_model

NO_TARGET = "(no --target given: TensorRT on SM 8.0 and up)"


@pytest.mark.parametrize("targets", [(), ("trt:sm80",), ("rtx:sm86",), ("trt:sm80", "rtx:sm86")])
def test_the_words_about_the_target_follow_what_the_user_passed(
    tmp_path: Path, targets: tuple[str, ...]
) -> None:
    model = save(tiny_model(), tmp_path / "m.onnx")
    options = [word for target in targets for word in ("--target", target)]
    _, plan, _ = run("plan", model, *options)
    report = tmp_path / "report.txt"
    argv = ("quantize", model, "-o", tmp_path / "q.onnx", "--data", samples(tmp_path / "d"))
    _, text, _ = run(*argv, *options, "--report", report)
    for output in (plan, text, report.read_text()):
        assert (NO_TARGET in output) is (not targets)
        assert f"for {', '.join(targets or ('trt:sm80',))}" in output


def test_a_target_of_the_project_file_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny_model(), tmp_path / "m.onnx")
    (tmp_path / "qdq.yaml").write_text("targets: ['trt:sm80']\n")
    monkeypatch.chdir(tmp_path)
    assert NO_TARGET not in run("plan", "m.onnx")[1]
    assert NO_TARGET in run("--no-project", "plan", "m.onnx")[1]
