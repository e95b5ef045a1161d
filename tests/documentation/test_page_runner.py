"""The runner of pages finds what a page says wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page_runner import match_lines, run_page


def run_text(folder: Path, text: str) -> list[str]:
    """Run a page of some text in a folder."""
    page = folder / "page.md"
    page.write_text(text)
    return run_page(page, folder)


@pytest.mark.parametrize(
    ("expected", "printed", "matches"),
    [
        (["37.8 dB in 28 kernels"], ["37.9 dB in 28 kernels"], True),
        (["37.8 dB in 28 kernels"], ["17.8 dB in 28 kernels"], False),
        (["37.8 dB in 28 kernels"], ["37.8 dB in 29 kernels"], False),
        (["a", "...", "d 1.0"], ["a", "b", "c", "d 1.0"], True),
        (["wrote ..., b"], ["wrote a, b"], True),
        (["version 1.7.1.116"], ["version 1.7.1.117"], False),
        (["a"], ["a", "b"], False),
    ],
)
def test_numbers_with_a_point_may_differ_by_a_tenth(
    expected: list[str], printed: list[str], matches: bool
) -> None:
    assert match_lines(expected, printed) is matches


def test_a_command_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    (problem,) = run_text(tmp_path, "```shell\nqdq check none.onnx\n```\n")

    assert problem.startswith("page.md:2: qdq check none.onnx\n  exit code 2\n")


def test_alternatives_replace_the_files_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fixture = "<!-- fixture: m.onnx = fixtures/networks/digits_cnn.onnx -->\n"
    command = "qdq plan m.onnx -o m.plan.yaml   # twice\n"

    assert run_text(tmp_path, f"{fixture}```shell\n{command}{command}```\n") == []


def test_hidden_commands_run_and_modules_of_a_page_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (
        "<!-- run: qdq facts > facts.txt -->\n"
        '```python title="own.py"\nVALUE = 3\n```\n'
        "```python\nfrom own import VALUE\nassert VALUE == 3\n```\n"
    )

    assert run_text(tmp_path, page) == []
    assert (tmp_path / "facts.txt").read_text()
    with pytest.raises(ModuleNotFoundError):
        __import__("own")
