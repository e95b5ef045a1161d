"""Sections of a report: headings, lines and tables, as text for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from tabulate import tabulate

from qdq.printable import escape_unprintable
from qdq.reports.markdown import escape_text

#: How many names a line of a report holds.
_MOST_NAMES = 10


class Section(msgspec.Struct, frozen=True):
    """A heading, lines and at most one table."""

    title: str
    lines: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


def sections_text(parts: Iterable[Section], markdown: bool = False) -> str:
    """Return sections as text for a terminal, or as Markdown, whatever names are in them."""
    blocks: list[str] = []
    for part in parts:
        blocks += _markdown_blocks(part) if markdown else _terminal_blocks(part)
        blocks.append("")
    return "\n".join(blocks).rstrip() + "\n"


def join_names(names: Sequence[str]) -> str:
    """Return names separated by commas; of many names the first ones, and how many more."""
    text = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    if more > 0:
        text += f" and {more} more (JSON lists all)"
    return text


def count_noun(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s unless it is one."""
    if count != 1:
        noun += "s"
    return f"{count} {noun}"


def _markdown_blocks(section: Section) -> list[str]:
    blocks = [f"## {escape_text(section.title)}"]
    for line in section.lines:
        blocks.append(f"- {escape_text(line)}")
    if section.rows:
        blocks += ["", _format_table(section, "github", escape_text)]
    return blocks


def _terminal_blocks(section: Section) -> list[str]:
    lines = list(map(escape_unprintable, section.lines))
    if section.rows:
        lines += _format_table(section, "simple", escape_unprintable).split("\n")
    title = escape_unprintable(section.title)
    return [title, *(f"  {line}" for line in lines)]


def _format_table(section: Section, layout: str, escape: Callable[[str], str]) -> str:
    headers = list(map(escape, section.headers))
    rows: list[list[Any]] = []
    for row in section.rows:
        rows.append([_escape_cell(cell, escape) for cell in row])
    return tabulate(rows, headers, tablefmt=layout, disable_numparse=True)


def _escape_cell(cell: Any, escape: Callable[[str], str]) -> Any:
    """Return a cell with its text escaped; numbers stay, since columns of them are aligned."""
    return escape(cell) if isinstance(cell, str) else cell
