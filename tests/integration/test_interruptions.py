"""A part of `benchmarks/interruptions.py`: what failed and interrupted commands leave on disk."""

from __future__ import annotations

import signal
from pathlib import Path

import interruptions
import pytest

CHOSEN = ("strip", "check --fix")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the inputs of the commands."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("in", "tmp", "out"):
        (folder / name).mkdir()
    interruptions.write_inputs(folder / "in")
    return folder


@pytest.mark.parametrize("name", CHOSEN)
def test_files_are_as_before_or_complete(root: Path, name: str) -> None:
    (command,) = [command for command in interruptions.COMMANDS if command.name == name]
    bench = interruptions.Bench(command, root / "in", root / "out")
    bench.measure()

    interruptions.fill_disk(bench, interruptions.PAGE, old=True)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for moment in range(2):
            interruptions.interrupt(bench, number, moment, None)
    link = interruptions.run_over_link(bench)
    over_input = interruptions.run_over_input(bench)

    assert bench.failures == []
    assert link == "complete, the file behind it"
    assert over_input in ("refused", "-")
