"""Several models in one call: `quantize --out-dir --jobs` and `check --jobs`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import psutil
import pytest

from qdq.cli.fleet import name_outputs
from qdq.cli.job_pool import JobFailure, run_jobs, sort_answers
from qdq.errors import UsageError
from tests.support.cli_runner import refused, run, samples, save, tiny_model
from tests.support.defects import DEFECTS, good


def check_models(folder: Path) -> list[Path]:
    """Write a good model, one with an error, a file that is no model, and another good one."""
    paths = [folder / f"{name}.onnx" for name in ("good", "uint8", "text", "last")]
    for path in (paths[0], paths[3]):
        onnx.save(good(), path)
    damaged = good()
    DEFECTS["uint8"][0](damaged)
    onnx.save(damaged, paths[1])
    paths[2].write_text("no model")
    return paths


@pytest.mark.parametrize("layout", ["text", "json", "sarif", "github"])
def test_jobs_check_as_one_process_does(tmp_path: Path, layout: str) -> None:
    paths = check_models(tmp_path)
    serial = run("check", *paths, "--format", layout)

    assert run("check", *paths, "--format", layout, "--jobs", 2) == serial
    assert serial[0] == 2
    assert serial[2].startswith(f"qdq: {paths[2]}: the file is not an ONNX file")


def test_processes_that_begin_as_copies_check_the_same(tmp_path: Path) -> None:
    """In a process of its own, where ONNX Runtime is not loaded, Linux copies the process."""
    paths = check_models(tmp_path)
    words = ("check", *map(str, paths), "--jobs", "3")
    done = subprocess.run(
        [sys.executable, "-m", "qdq", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == run("check", *paths)


def test_jobs_use_the_baseline_and_fix(tmp_path: Path) -> None:
    paths = check_models(tmp_path)[:2]
    baseline = tmp_path / "baseline.json"
    assert run("check", *paths, "--jobs", 2, "--write-baseline", baseline)[0] == 0
    assert run("check", *paths, "--jobs", 2, "--baseline", baseline)[0] == 0

    code, out, _ = run("check", "--fix", *paths, "--jobs", 2)

    assert code == 0, out
    assert "uint8.onnx: fixed: " in out
    assert (
        run("check", *paths, "--jobs", 2, "--baseline", baseline)[2].count("no longer exist") == 1
    )


def test_each_model_is_quantized_into_the_folder(tmp_path: Path) -> None:
    data = samples(tmp_path / "d" / "a")
    data.rename(tmp_path / "d" / "b")
    samples(tmp_path / "d" / "a")
    paths = [save(tiny_model(), tmp_path / name) for name in ("a.onnx", "b.onnx")]
    bad = tmp_path / "bad.onnx"
    bad.write_text("no model")
    folder = tmp_path / "new" / "int8"
    options = ("--data", tmp_path / "d" / "{stem}", "--report", tmp_path / "{stem}.json")

    code, out, err = run(
        *("quantize", paths[0], bad, paths[1], "--out-dir", folder, "--jobs", 2, *options)
    )

    assert code == 2
    assert err.startswith(f"qdq: {bad}: the file is not an ONNX file")
    lines = out.splitlines()
    assert lines[0].startswith(f"{paths[0]}: wrote {folder / 'a.onnx'}: 4 pairs, no findings, ")
    assert lines[1].startswith(f"{paths[1]}: wrote {folder / 'b.onnx'}: 4 pairs, no findings, ")
    assert "  3 models: 2 quantized, 1 failed" in lines
    assert lines[-2].split()[:3] == [str(bad), "failed", "-"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "b.onnx"]
    assert json.loads((tmp_path / "b.json").read_text())["plan"]["model"] == "b.onnx"
    alone = tmp_path / "alone.onnx"
    assert run("quantize", paths[0], "-o", alone, "--data", tmp_path / "d" / "a")[0] == 0
    assert (folder / "a.onnx").read_bytes() == alone.read_bytes()


def test_the_json_is_one_object(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "a.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_text("no model")
    words = ("--data", "noise", "--leave-float", "gemm")

    fleet = ("quantize", model, bad, "--out-dir", tmp_path / "o", "--format", "json", *words)
    code, out, _ = run(*fleet)

    answer = json.loads(out)
    alone = run("quantize", model, "-o", tmp_path / "a8.onnx", *words, "--format", "json")[1]
    report = json.loads(alone)
    assert (code, report.pop("qdq_json")) == (2, answer["qdq_json"])
    first, second = answer["models"]
    assert first["report"] == report
    assert (first["exit_code"], first["failure"]) == (0, "")
    assert (second["exit_code"], second["report"]) == (2, None)
    assert second["failure"].startswith(f"{bad}: the file is not an ONNX file")


def test_the_project_file_applies_to_every_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qdq.yaml").write_text("data: noise\nleave_float: [conv]\n")
    for name in ("a.onnx", "b.onnx"):
        save(tiny_model(), tmp_path / name)

    code, out, err = run("quantize", "a.onnx", "b.onnx", "--out-dir", "o")

    assert (code, err) == (0, "project file qdq.yaml: data, leave_float\n")
    assert out.count(": 2 pairs, no findings, ") == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("A", "B", "-o", "x.onnx"), "there are 2 models. Pass --out-dir with a folder."),
        (("A", "B"), "there are 2 models. Pass --out-dir with a folder."),
        (("A", "-o", "x.onnx", "--out-dir", "o"), "-o and --out-dir exclude each other."),
        (("A", "-o", "x.onnx", "--jobs", "2"), "--jobs works on several models."),
        (("A", "B", "--out-dir", "o", "--report", "r.md"), "--report=r.md: several models would"),
        (("A", "B", "--out-dir", "."), "the output is the input, and inputs are never changed."),
        (("A", "A", "--out-dir", "o"), "the model is passed twice. Pass it once."),
        (("A", "--out-dir", "o", "--jobs", "0"), "0 is not in the range x>=1"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {name: save(tiny_model(), tmp_path / f"{name}.onnx").name for name in "AB"}

    argv = [paths.get(word, word) for word in words]

    assert expected in refused(tmp_path, "quantize", *argv, "--data", "noise")


def test_outputs_keep_the_folders_of_models(tmp_path: Path) -> None:
    models = [Path("zoo/a/model.onnx"), Path("zoo/b/model.onnx"), Path("zoo/c.onnx")]
    out = Path("int8")
    assert name_outputs(models[:1], out) == [out / "model.onnx"]
    assert name_outputs([Path("zoo/d.onnx"), models[2]], out) == [out / "d.onnx", out / "c.onnx"]
    assert name_outputs(models, out) == [out / "a/model.onnx", out / "b/model.onnx", out / "c.onnx"]
    with pytest.raises(UsageError, match="passed twice"):
        name_outputs([models[0], Path("zoo/../zoo/a/model.onnx")], out)


def make_task(base: int) -> Callable[[int], int]:
    """Return a task that answers, fails, or ends its process."""

    def divide(divisor: int) -> int:
        if divisor < 0:
            os.kill(os.getpid(), -divisor)
        return base // divisor

    return divide


def test_a_crash_loses_one_item() -> None:
    items = [1, -signal.SIGSEGV, 2, 0, -signal.SIGKILL, 5]

    answers = list(sort_answers(run_jobs(make_task, 10, items, 2)))

    failures = [answer for answer in answers if isinstance(answer, JobFailure)]
    assert [answer for answer in answers if isinstance(answer, int)] == [10, 5, 2]
    assert [type(answer) for answer in answers[1::3]] == [JobFailure, JobFailure]
    assert "a library in C++ crashed (SIGSEGV)" in failures[0].message
    assert failures[1].message.startswith("an error that qdq does not foresee: ZeroDivisionError")
    assert "(SIGKILL), as it does where memory runs out" in failures[2].message
    assert [failure.exit_code for failure in failures] == [2, 3, 2]


def test_no_answer_is_lost_when_the_reader_stops() -> None:
    answers = run_jobs(make_task, 10, [1, 2, 5], 3)
    next(answers)
    answers.close()
    children = psutil.Process().children()
    assert [child for child in children if "spawn_main" in " ".join(child.cmdline())] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}\nfrom qdq.__main__ import run\nrun()"
    paths = [save(tiny_model(), tmp_path / f"{i}.onnx") for i in range(40)]
    command = [sys.executable, "-c", code, "quantize", *map(str, paths)]
    command += ["--out-dir", str(tmp_path / "o"), "--jobs", "2", "--data", "noise"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # both work by now
    family = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 128 + number
    assert err.startswith("qdq: interrupted")
    assert err.count("\n") == 1
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert all(path.suffix == ".onnx" for path in (tmp_path / "o").iterdir())
