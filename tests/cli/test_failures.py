"""How commands end that cannot go on: one line, and an exit code that is not that of findings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from qdq import cli
from qdq.cli.failures import report_failure
from qdq.errors import DataError
from tests.support.cli_runner import run, save, tiny_model

QDQ = [sys.executable, "-m", "qdq", "--no-project"]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every command end in an exception."""

    def command() -> None:
        raise error

    planned = click.Command("plan", callback=command)
    monkeypatch.setattr(cli._LazyGroup, "get_command", lambda self, ctx, name: planned)


UNFORESEEN = [
    ValueError("cannot reshape\narray"),
    ZeroDivisionError(),
    RecursionError("too deep"),
    KeyError("x\x1b[31m"),
    AssertionError(),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_an_error_that_nobody_foresees_is_one_line_with_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_with(monkeypatch, error)
    code, out, err = run("plan")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert err.startswith(f"qdq: an error that qdq does not foresee: {type(error).__name__}: ")
    assert "Please report it" in err
    assert "--debug" in err


@pytest.mark.parametrize("error", [ValueError("x"), DataError("x: y. Fix it.")])
def test_debug_prints_the_traceback_before_the_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_with(monkeypatch, error)
    code, _, err = run("--debug", "plan")
    assert code in (2, 3)
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("qdq: ")


def test_an_error_of_the_system_names_the_file() -> None:
    assert report_failure(PermissionError(13, "Permission denied", "/x/y")) == 2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "--codes"], ["check", "--codes", "--format", "json"]]
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_standard_output_is_no_finding(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*QDQ, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 2
    assert result.stderr.startswith("qdq: standard output cannot be written: No space left")
    assert result.stderr.count("\n") == 1


def closed(*arguments: object, stream: int) -> subprocess.CompletedProcess[str]:
    """Run `qdq` with one standard stream closed."""
    command = " ".join(map(str, [*QDQ, *arguments]))
    return subprocess.run(
        ["sh", "-c", f"{command} {stream}>&-"], capture_output=True, text=True, check=False
    )


def test_a_closed_standard_output_is_refused() -> None:
    result = closed("check", "--codes", stream=1)
    assert result.returncode == 2
    assert result.stderr == ("qdq: standard output is closed. Open it, or write it to /dev/null.\n")


@pytest.mark.parametrize(("model", "code"), [("model.onnx", 0), ("missing.onnx", 2)])
def test_a_closed_standard_error_changes_no_exit_code(
    tmp_path: Path, model: str, code: int
) -> None:
    save(tiny_model(), tmp_path / "model.onnx")
    result = closed("plan", tmp_path / model, stream=2)
    assert (result.returncode, result.stderr) == (code, "")


def script(folder: Path, code: str) -> list[str]:
    """Return the command that quantizes with a data-loader script."""
    path = folder / "data.py"
    path.write_text(f"import os, signal, time\ndef load_data():\n    {code}\n    yield {{}}\n")
    model = save(tiny_model(), folder / "model.onnx")
    out = folder / "out.onnx"
    return [*QDQ, "quantize", str(model), "-o", str(out), "--data", str(path)]


needs_parent = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="the system has no sigwaitinfo"
)


@needs_parent
@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("SIGABRT", "a library in C++ crashed (SIGABRT)"),
        ("SIGSEGV", "a library in C++ crashed (SIGSEGV)"),
        ("SIGKILL", "the system ended it (SIGKILL), as it does where memory runs out"),
    ],
)
def test_a_crash_in_a_library_is_one_line(tmp_path: Path, name: str, fact: str) -> None:
    command = script(tmp_path, f"os.kill(os.getpid(), signal.{name})")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("qdq: --no-project quantize ")
    assert fact in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def is_running(process: int) -> bool:
    """Whether a process runs, and is not only waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@needs_parent
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_ends_its_child_too(tmp_path: Path, number: signal.Signals) -> None:
    started = tmp_path / "started"
    command = script(
        tmp_path, f"open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(started.read_text())
    assert child != process.pid
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode not in (0, 1)
    assert "Traceback" not in err
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)


def test_characters_that_the_output_s_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[0].name = "é日"
    path = save(model, tmp_path / "model.onnx")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run(
        [*QDQ, "plan", str(path)],
        capture_output=True,
        encoding="latin-1",
        env=environment,
        check=False,
    )
    assert result.returncode == 0
    assert r"é\u65e5[0]" in result.stdout
