"""Sections of a report: headings, lines and tables, as text for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from tabulate import tabulate


class Section(msgspec.Struct, frozen=True):
    """A heading, paragraphs and at most one table."""

    title: str
    lines: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


def sections_text(parts: Iterable[Section], markdown: bool = False) -> str:
    """Return sections as text for a terminal, or as Markdown."""
    blocks = []
    for part in parts:
        heading = f"## {part.title}" if markdown else part.title
        blocks += [heading, *(f"- {line}" if markdown else f"  {line}" for line in part.lines)]
        if part.rows:
            table = tabulate(
                part.rows,
                part.headers,
                tablefmt="github" if markdown else "simple",
                disable_numparse=True,
            )
            blocks += (
                ["", table] if markdown else ["\n".join(f"  {line}" for line in table.splitlines())]
            )
        blocks.append("")
    return "\n".join(blocks).rstrip() + "\n"
