"""Colours and tables on a terminal; plain text in pipes, with NO_COLOR and with TERM=dumb."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qdq.cli import terminal
from qdq.reports.sections import Section, sections_text
from tests.support.cli_runner import save
from tests.support.defects import DEFECTS, good
from tests.support.paths import ROOT

if importlib.util.find_spec("pty") is None:
    pytest.skip("pseudo-terminals are a module of Unix", allow_module_level=True)
import pty

ESCAPE = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    uint8 = good()
    DEFECTS["uint8"][0](uint8)
    return save(uint8, tmp_path / "uint8.onnx")


def run_on_terminal(*words: object, **variables: str) -> str:
    """Return the standard output of `qdq` in a process with a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **variables}
    if not variables.get("NO_COLOR"):
        environment.pop("NO_COLOR", None)
    main, other = pty.openpty()
    command = [sys.executable, "-m", "qdq", *map(str, words)]
    process = subprocess.Popen(command, stdout=other, stderr=subprocess.DEVNULL, env=environment)
    os.close(other)
    content = b""
    with contextlib.suppress(OSError):  # Linux ends a closed terminal by EIO
        while part := os.read(main, 1 << 16):
            content += part
    process.wait()
    os.close(main)
    return content.decode().replace("\r\n", "\n")


def run_in_pipe(*words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qdq", *map(str, words)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, env=environment, check=False
    ).stdout.decode()


def test_a_terminal_gets_colours_and_else_the_same_lines(model: Path) -> None:
    plain = run_in_pipe("check", model)
    styled = run_on_terminal("check", model)
    assert "\x1b" not in plain
    assert "\x1b[1;31m1 error\x1b[0m" in styled
    assert ESCAPE.sub("", styled) == plain


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_plain_text_on_request(model: Path, variables: dict[str, str]) -> None:
    words = ("inspect", model, "--layers")
    assert run_on_terminal(*words, **variables) == run_in_pipe(*words)


def test_tables_have_the_cells_of_the_plain_text(model: Path) -> None:
    styled = ESCAPE.sub("", run_on_terminal("inspect", model, COLUMNS="200"))
    plain = run_in_pipe("inspect", model)
    rows = [line.split() for line in styled.splitlines() if line.strip(" ─-")]
    assert rows == [line.split() for line in plain.splitlines() if line.strip(" -")]


def test_json_has_no_colours(model: Path) -> None:
    assert "\x1b" not in run_on_terminal("inspect", model, "--format", "json")


def test_rich_is_not_imported_for_a_pipe(model: Path) -> None:
    code = (
        "import sys; from qdq.cli import main; main(['check', sys.argv[1]]);"
        "sys.exit('rich' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(model)]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == 0


def test_names_of_a_model_bring_no_escapes_and_no_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "[bold]a\x1b[31m\n:smile:"
    section = Section(name, (name,), ("[red]head",), ((name,), (1,)))
    terminal.print_styled_sections([section])
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out
    shown = "[bold]a\\x1b[31m\\n:smile:"
    assert out.count(shown) == 3
    assert out.splitlines()[0] == shown
    assert shown in sections_text([section])
