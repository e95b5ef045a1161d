"""Text that is safe to show, and JSON that keeps its meaning."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdq.printable import escape_json, escape_surrogates, escape_unprintable, shorten

ESCAPED = {
    "a\nb": r"a\nb",
    "a\r\tb": r"a\r\tb",
    "\x1b[31m": r"\x1b[31m",
    "\x9b31m": r"\x9b31m",
    "a\u202eb": r"a\u202eb",
    "a\u2028b\u2029c\x85d": r"a\u2028b\u2029c\x85d",
    "\udcff": r"\udcff",
    "\x00\x7f": r"\x00\x7f",
    "\ufeff\u200b": r"\ufeff\u200b",
    "\U000e0001": r"\U000e0001",
}


@pytest.mark.parametrize("text", ESCAPED)
def test_characters_that_cannot_be_printed_are_escaped(text: str) -> None:
    assert escape_unprintable(text) == ESCAPED[text]


@pytest.mark.parametrize("text", ["/layer1/conv.0", "日本語", "é |<b> `x` \\n"])
def test_other_text_stays(text: str) -> None:
    assert escape_unprintable(text) == text


@settings(derandomize=True)
@given(st.text(st.characters(codec=None)))
def test_the_result_is_one_printable_line(text: str) -> None:
    assert escape_unprintable(text).isprintable()


@settings(derandomize=True)
@given(st.dictionaries(st.text(), st.lists(st.text())))
def test_json_keeps_its_meaning_and_shows_no_control(content: dict[str, list[str]]) -> None:
    escaped = escape_json(json.dumps(content, ensure_ascii=False, indent=1))
    assert json.loads(escaped) == content
    assert all(line.isprintable() for line in escaped.split("\n"))


def test_lone_surrogates_are_escaped_everywhere() -> None:
    content = {"\udcff": ["a\udcfe", ("\udcfd", 1)]}
    assert escape_surrogates(content) == {r"\udcff": [r"a\udcfe", [r"\udcfd", 1]]}


def test_a_long_message_keeps_its_beginning_and_its_fix() -> None:
    short = shorten("begin " + "x" * 10_000 + " fix it.")
    assert len(short) < 2100
    assert short.startswith("begin x")
    assert short.endswith("x fix it.")
