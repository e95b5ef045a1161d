"""Every `qdq` command in the documentation exists, with the options that it is shown with.

Commands in fences are run (test_pages.py). Those in sentences and in generated pages are parsed by the command line
itself, without running it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from qdq.cli import cli
from tests.support.page_runner import read_blocks
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: A command alone on its line, in a fence or after a prompt, or in code within a sentence.
_LINES = re.compile(r"^ *\$ (qdq .*)$", re.MULTILINE)
_CODE = re.compile(r"(?<!`)`(qdq [^`\n]+)`")

#: What ends a command of a shell.
_ENDS = {"|", ">", ";", "&&"}


def list_commands(page: Path) -> list[str]:
    text = page.read_text()
    fences = [block.text for block in read_blocks(page) if block.kind in ("shell", "")]
    alternatives = [line for fence in fences for line in fence.splitlines()]
    in_fences = [line for line in alternatives if line.startswith("qdq ")]
    return [*_LINES.findall(text), *in_fences, *_CODE.findall(text)]


def split_words(line: str) -> list[str]:
    """Return the words of a command, without its comment and without what a shell does after it."""
    words = shlex.split(line, comments=True)
    for number, word in enumerate(words):
        if word in _ENDS:
            return words[1:number]
    return words[1:]


def check_options(words: list[str]) -> str:
    """Return what is wrong with a command, "" where it exists and has all of these options."""
    group: click.Command = cli
    context = click.Context(cli, info_name="qdq")
    while isinstance(group, click.Group):
        names = [word for word in words if not word.startswith("-")]
        command = group.get_command(context, names[0]) if names else None
        if command is None:
            if group.name == "rules" or not names or not re.fullmatch("[a-z-]+", names[0]):
                break
            return f"there is no command {names[0]!r}"
        words.remove(names[0])
        group = command
    known = {
        name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= {name for parameter in cli.params for name in parameter.opts} | {"--help", "-h"}
    unknown = [word for word in words if re.match("--?[a-z]", word) and word not in known]
    return f"no option {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    problems = {}
    for line in list_commands(page):
        problem = check_options(split_words(line))
        if problem:
            problems[line] = problem

    assert problems == {}


def test_a_command_that_does_not_exist_is_found() -> None:
    assert check_options(["quantise", "m.onnx"]) == "there is no command 'quantise'"
    assert check_options(["quantize", "m.onnx", "--dta", "d"]) == "no option --dta"
    assert check_options(["rules", "show", "x", "--wide"]) == "no option --wide"
    assert check_options(["rules", "tensorrt"]) == ""


def test_commands_are_found_in_the_pages() -> None:
    assert sum(len(list_commands(page)) for page in PAGES) > 200
