"""Running a page of the documentation as its reader would: its commands, snippets and files.

A page is Markdown. In it, in this order of the page:

* a fence ``console`` holds commands after ``$ ``, each followed by what it prints. A line ``...``
  stands for any lines, ``...`` in a line for any text. What a command without lines below it prints
  is not compared. ``$ echo $?`` after a command shows its exit code; without it the code is 0;
* a fence ``python`` is a snippet; all snippets of a page share their names;
* a fence with ``title="FILE"`` is the content of that file;
* a comment ``<!-- fixture: TARGET = SOURCE -->`` copies a file of the checkout into the folder,
  and ``<!-- setup: NAME -->`` calls a function of this module that makes files;
* a comment ``<!-- not run: REASON -->`` before a fence leaves it out.

A fence in any other language is text.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from qdq.cli import main
from tests.support.paths import NETWORKS, ROOT

_FENCE = re.compile(r"^( *)```(\w*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_COMMENT = re.compile(r"^<!-- (fixture|setup|not run): (.*?) -->$")
_PROMPT = "$ "
_ANY = "..."
_EXIT_CODE = "echo $?"
_SHELL = set("|><&;$*`(){}")


@dataclass
class Block:
    """A fence of a page, or a comment about its files."""

    kind: str
    #: The line of the page that it begins at, from 1.
    line: int
    text: str
    #: The file that the text is the content of, "" for none.
    title: str = ""
    #: Why it is not run, "" where it is.
    reason: str = ""


@dataclass
class Command:
    """One command of a fence, and the lines after it."""

    line: int
    text: str
    output: list[str] = field(default_factory=list)


def read_blocks(page: Path) -> list[Block]:
    """Return the fences of a page and the comments about its files, in order."""
    blocks: list[Block] = []
    reason, indent = "", 0
    fence: Block | None = None
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        mark = _FENCE.match(line)
        if fence is not None:
            if mark and not mark[2]:
                fence = None
            else:
                fence.text += line.removeprefix(" " * indent) + "\n"
            continue
        comment = _COMMENT.match(line)
        if mark:
            title = _TITLE.search(mark[3])
            fence = Block(mark[2], number, "", title[1] if title else "", reason)
            indent, reason = len(mark[1]), ""
            blocks.append(fence)
        elif comment and comment[1] == "not run":
            reason = comment[2]
        elif comment:
            blocks.append(Block(comment[1], number, comment[2]))
    return blocks


def split_commands(block: Block) -> list[Command]:
    """Return the commands of a console fence."""
    commands: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith(_PROMPT):
            commands.append(Command(number, line.removeprefix(_PROMPT)))
        elif commands and commands[-1].text.endswith("\\"):
            commands[-1].text = commands[-1].text[:-1] + line.strip()
        elif commands:
            commands[-1].output.append(line)
    return commands


def run_page(page: Path, folder: Path) -> list[str]:
    """Run a page in an empty folder and return what differs from it, one text per difference."""
    names: dict[str, object] = {"__name__": "page"}
    problems: list[str] = []
    for block in read_blocks(page):
        where = f"{page.name}:{block.line}"
        if block.reason:
            continue
        if block.kind == "fixture":
            target, _, source = block.text.partition(" = ")
            _copy(ROOT / source, folder / target)
        elif block.kind == "setup":
            SETUPS[block.text](folder)
        elif block.title:
            target_file = folder / block.title
            target_file.parent.mkdir(parents=True, exist_ok=True)
            target_file.write_text(block.text)
        elif block.kind == "python":
            exec(compile(block.text, where, "exec"), names)
        elif block.kind == "console":
            problems += _run_console(page, block, folder)
    return problems


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _run_console(page: Path, block: Block, folder: Path) -> Iterator[str]:
    """Run the commands of a fence and yield the differences."""
    commands = split_commands(block)
    code = 0
    for command, after in zip(commands, [*commands[1:], None], strict=True):
        where = f"{page.name}:{command.line}: $ {command.text}"
        if command.text == _EXIT_CODE:
            if command.output != [str(code)]:
                yield f"{where}\n  page: {command.output}\n  exit code: {code}"
            continue
        code, output = run_command(command.text, folder)
        if code and (after is None or after.text != _EXIT_CODE):
            yield f"{where}\n  exit code {code}\n{output}"
        if command.output and not match_lines(command.output, output.splitlines()):
            expected = "\n".join(command.output)
            yield f"{where}\n--- page\n{expected}\n--- printed\n{output}"


def run_command(text: str, folder: Path) -> tuple[int, str]:
    """Run a command in a folder and return its exit code and what it prints on both streams.

    `qdq` runs in this process; other commands, and what needs a shell, run in one.
    """
    words = shlex.split(text)
    if words[0] == "qdq" and not _SHELL & set(text):
        streams = io.StringIO()
        with contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
            code = main(words[1:])
        return code, streams.getvalue()
    result = subprocess.run(
        [
            "bash",
            "-c",
            f'qdq() {{ "$QDQ_PYTHON" -m qdq "$@"; }}; python() {{ "$QDQ_PYTHON" "$@"; }}; {text}',
        ],
        cwd=folder,
        env={**os.environ, "QDQ_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout


def match_lines(expected: list[str], printed: list[str]) -> bool:
    """Return whether lines are those of a page, in which ``...`` stands for any lines or text."""
    pattern = []
    for line in expected:
        if line.strip() == _ANY:
            pattern.append(r"(?:.*\n)*?")
        else:
            parts = map(re.escape, line.rstrip().split(_ANY))
            pattern.append(".*".join(parts) + r"\n")
    text = "".join(f"{line.rstrip()}\n" for line in printed)
    return re.fullmatch("".join(pattern), text.lstrip("\n")) is not None


# --- files for pages ---------------------------------------------------------------------------------------------------


def make_digits(folder: Path) -> None:
    """Write pictures of digits: 64 in ``photos/``, 100 in a folder of ``val/`` for each class."""
    calibration = np.load(NETWORKS / "digits-calibration.npz")["image"]
    for number, image in enumerate(calibration):
        _write_picture(folder / "photos" / f"{number:03}.png", image)
    evaluation = np.load(NETWORKS / "digits-evaluation.npz")
    for number in range(100):
        label = evaluation["label"][number]
        _write_picture(
            folder / "val" / str(label) / f"{number:03}.png", evaluation["image"][number]
        )


def _write_picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(path)


def make_samples(folder: Path) -> None:
    """Write the calibration digits as ``samples/NUMBER.npz``, one sample per file."""
    (folder / "samples").mkdir()
    for number, image in enumerate(np.load(NETWORKS / "digits-calibration.npz")["image"]):
        np.savez(folder / "samples" / f"{number:03}.npz", image=image[None])


def make_cache(folder: Path) -> None:
    """Write ``net.cache``, a TensorRT calibration cache of ``net.onnx``."""
    source, scales = folder / "net.onnx", folder / "net.scales.json"
    plan = folder / "net.plan.yaml"
    data = str(NETWORKS / "digits-calibration.npz")
    _run_quietly("plan", str(source), "-o", str(plan))
    _run_quietly("calibrate", str(source), str(plan), "--data", data, "-o", str(scales))
    cache = str(folder / "net.cache")
    _run_quietly("ranges", "export", str(scales), "--format", "tensorrt-cache", "-o", cache)


def _run_quietly(*words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    assert code == 0, words


def make_repository(folder: Path) -> None:
    """Make the folder a git repository without commits."""
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


SETUPS = {
    "digits": make_digits,
    "samples": make_samples,
    "cache": make_cache,
    "git": make_repository,
}
