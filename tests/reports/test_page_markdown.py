"""Pages as comments on pull requests: short, folded, and safe."""

from __future__ import annotations

import msgspec
import pytest

from qdq.reports.page import Figure, Verdict
from qdq.reports.page_markdown import MOST_BYTES, render_markdown
from qdq.reports.sections import Section
from tests.support.pages import HOSTILE, full_page, small_page

_GITHUB_CHARACTERS = 65_536


def test_the_verdict_is_first_and_details_are_folded() -> None:
    lines = render_markdown(full_page()).splitlines()
    assert lines[:3] == ["### qdq quantize: conv", "", "⚠️ **Look**"]
    folds = [line for line in lines if line.startswith("<details>")]
    assert folds == [
        "<details><summary>Engines side by side</summary>",
        "<details><summary>error opset: 1 place</summary>",
        "<details><summary>Plan conv</summary>",
        "<details><summary>Plan conv</summary>",
    ]
    assert lines.count("</details>") == len(folds)


def test_a_small_page_is_two_lines() -> None:
    assert render_markdown(small_page()) == (
        "### qdq check: m.onnx\n\n✅ **The check has no findings**\n"
    )


def test_hostile_names_are_no_markup() -> None:
    text = render_markdown(full_page(HOSTILE))
    assert "<img" not in text
    assert "</script>" not in text
    assert "<!--" not in text
    rows = [line for line in text.splitlines() if line.startswith("| Signal-to-noise")]
    assert [row.replace(r"\|", "").count("|") for row in rows] == [4]


@pytest.mark.parametrize("name", ["x" * 50_000, "é" * 500, "&<|" * 300])
def test_a_comment_fits_in_github(name: str) -> None:
    section = Section("Groups", (name,) * 500, ("a", "b"), ((name, name),) * 500)
    page = msgspec.structs.replace(
        full_page(),
        verdict=Verdict("bad", name, (name,) * 300),
        figures=(Figure(name, name, name),) * 60,
        details=(section,) * 50,
    )
    text = render_markdown(page)
    assert len(text.encode()) <= MOST_BYTES < _GITHUB_CHARACTERS
    assert text.count("<details>") == text.count("</details>")
    assert "left out: a comment has no room." in text.splitlines()[-1]
