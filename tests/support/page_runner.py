"""Running a page of the documentation as its reader would: its commands, snippets and files.

A page is Markdown. In it, in this order of the page:

* a fence ``console`` holds commands after ``$ ``, each followed by what it prints. A line ``...``
  stands for any lines, ``...`` in a line for any text, and numbers with a point may differ by a tenth. What a command without lines below it prints
  is not compared. ``$ echo $?`` after a command shows its exit code; without it the code is 0;
* a fence ``shell`` holds commands without their output. They are alternatives: each exits with 0, or with 1 where it
  finds something, and replaces the files that an earlier one wrote;
* a fence ``python`` is a snippet; all snippets of a page share their names;
* a fence with ``title="FILE"`` is the content of that file;
* a comment ``<!-- fixture: TARGET = SOURCE -->`` copies a file of the checkout into the folder,
  ``<!-- setup: NAME -->`` calls a function of `page_files` that makes files, and ``<!-- run: COMMAND -->`` runs a
  command that the reader does not see;
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

from qdq.cli import main
from tests.support.page_files import SETUPS
from tests.support.paths import ROOT

_FENCE = re.compile(r"^( *)```(\w*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_COMMENT = re.compile(r"^<!-- (fixture|setup|run|not run): (.*?) -->$")
_PROMPT = "$ "
_ANY = "..."
_EXIT_CODE = "echo $?"
_EXISTS = re.compile(r"^qdq: (?:\S+: )?(\S+): the file exists\.", re.MULTILINE)
_DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?![\d.]*\.\d)")
#: By how much such a number may differ: it depends on the processor.
_TOLERANCE = 0.1
_REMARK = re.compile(r"\s+# .*$")
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


def run_page(page: Path, folder: Path, compares: bool = True) -> list[str]:
    """Run a page in an empty folder and return what differs from it, one text per difference.

    Unless it `compares`, what commands print is not compared with the page.
    """
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
        elif block.kind == "run":
            code, output = run_command(block.text, folder)
            assert code in (0, 1), f"{where}: {output}"
        elif block.title:
            target_file = folder / block.title
            target_file.parent.mkdir(parents=True, exist_ok=True)
            target_file.write_text(block.text)
        elif block.kind == "python":
            with _importing_from(folder):
                exec(compile(block.text, where, "exec"), names)
        elif block.kind == "console":
            problems += _run_console(page, block, folder, compares)
        elif block.kind == "shell":
            problems += _run_alternatives(page, block, folder)
    return problems


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let imports find the files of a page, and forget them at the end."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").parent == folder:
                del sys.modules[name]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _run_alternatives(page: Path, block: Block, folder: Path) -> Iterator[str]:
    """Run each command of a fence and yield the failures."""
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if not line.strip():
            continue
        code, output = run_command(line, folder)
        while existing := _EXISTS.search(output):
            (folder / existing[1]).unlink()
            code, output = run_command(line, folder)
        if code not in (0, 1):
            yield f"{page.name}:{number}: {line}\n  exit code {code}\n{output}"


def _run_console(page: Path, block: Block, folder: Path, compares: bool) -> Iterator[str]:
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
        if compares and command.output and not match_lines(command.output, output.splitlines()):
            expected = "\n".join(command.output)
            yield f"{where}\n--- page\n{expected}\n--- printed\n{output}"


def run_command(text: str, folder: Path) -> tuple[int, str]:
    """Run a command in a folder and return its exit code and what it prints on both streams.

    `qdq` runs in this process; other commands, and what needs a shell, run in one.
    """
    text = _REMARK.sub("", text)
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
        env={
            **os.environ,
            "QDQ_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
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
            parts = map(_escape_text, line.rstrip().split(_ANY))
            pattern.append(".*".join(parts) + r"\n")
    text = "".join(f"{line.rstrip()}\n" for line in printed)
    match = re.fullmatch("".join(pattern), text.lstrip("\n"))
    if match is None:
        return False
    numbers = [float(number) for line in expected for number in _DECIMAL.findall(line)]
    pairs = zip(numbers, map(float, match.groups()), strict=True)
    return all(abs(shown - actual) <= _TOLERANCE * abs(shown) for shown, actual in pairs)


def _escape_text(text: str) -> str:
    """Return a pattern for a text, in which numbers with a point are groups."""
    return rf"({_DECIMAL.pattern})".join(map(re.escape, _DECIMAL.split(text)))
