"""Shell completion, which click makes: its scripts, and what they complete."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

COMMAND = [sys.executable, "-c", "import sys; sys.argv = ['qdq']; from qdq.cli import run; run()"]


def complete(instruction: str, words: str = "") -> subprocess.CompletedProcess[str]:
    """Return how `qdq` ends when a shell asks for completion; the last of the words is completed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_QDQ_COMPLETE": instruction,
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_of_a_shell_is_printed(shell: str) -> None:
    ended = complete(f"{shell}_source")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "_QDQ_COMPLETE" in ended.stdout
    assert f"{shell}_complete" in ended.stdout


def test_the_script_of_bash_is_printed() -> None:
    ended = complete("bash_source")  # click warns where bash is missing or older than 4.4
    assert ended.returncode == 0
    assert "complete -o nosort -F _qdq_completion qdq" in ended.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("qdq insp", ["inspect"]),
        ("qdq check --stat", ["--statistics"]),
        ("qdq rules sh", ["show"]),
        ("qdq quantize --float b", ["bf16"]),
        ("qdq --qui", ["--quiet"]),
        ("qdq inspect --ver", ["--verbose"]),
    ],
)
def test_commands_options_and_choices_are_completed(words: str, completed: list[str]) -> None:
    ended = complete("bash_complete", words)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == [f"plain,{word}" for word in completed]


def test_files_are_completed_by_the_shell() -> None:
    assert complete("bash_complete", "qdq check m").stdout == "file,m\n"
