"""Reports of models whose names are markup or commands."""

from __future__ import annotations

import json

import pytest

from qdq.checking.finding import make_finding
from qdq.graph.index import Edge
from qdq.reports.json_output import encode_json
from qdq.reports.markdown import escape_text
from qdq.reports.sarif import CheckedModel, to_github, to_sarif
from qdq.reports.sections import Section, sections_text

EVIL = "\x1b[31m\n::error file=x::PWNED|</td><script>alert(1)</script>\u202e"
SECTION = Section(EVIL, (EVIL,), ("name", EVIL), ((EVIL, 0.5),))


def test_a_name_begins_no_line_of_a_terminal_or_log() -> None:
    text = sections_text([SECTION])
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("::error") for line in lines)
    assert len(lines) == 6  # title, line, header, rule, row, the end


def test_a_name_is_no_markup_in_markdown() -> None:
    text = sections_text([SECTION], markdown=True)
    row = text.split("\n")[-2]
    assert "<" not in text
    assert row.replace(r"\|", "").count("|") == 3  # of two cells
    assert r"\x1b[31m" in text.replace("\\\\", "\\")


MARKUP = {
    "**b** *i*": r"\*\*b\*\* \*i\*",
    "`code`": r"\`code\`",
    "a|b": r"a\|b",
    "<b> &lt;": "&lt;b&gt; &amp;lt;",
    "[x](http://y)": r"[x\](http://y)",
    "__init__": r"\_\_init\_\_",
    "~~s~~ $x$": r"\~\~s\~\~ \$x\$",
    "# x": r"\# x",
    "- x": r"\- x",
    "1. x": r"1\. x",
    "a\\": "a\\\\",
}


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_escaped(text: str) -> None:
    assert escape_text(text) == MARKUP[text]


@pytest.mark.parametrize("text", ["conv_1[0]", "/layer1/layer1.0/conv", "0.8853", "-", "x -> y"])
def test_names_and_numbers_stay_legible(text: str) -> None:
    assert escape_text(text) == text.replace(">", "&gt;")


def _evil_model() -> CheckedModel:
    edge = Edge("", EVIL, 0, EVIL)
    return CheckedModel("m\udcff.onnx", (make_finding("uint8", edge, EVIL),))


def test_json_of_any_name_is_valid() -> None:
    text = encode_json({"name": EVIL, "path": "\udcff"}, indent=1)
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == {"name": EVIL, "path": r"\udcff"}


def test_sarif_and_github_hold_names_escaped() -> None:
    checked = _evil_model()
    log = json.loads(to_sarif([checked], "1"))
    (line,) = to_github(checked)
    message = log["runs"][0]["results"][0]["message"]["text"]
    assert message.isprintable()
    assert line.isprintable()
    assert line.startswith("::")
