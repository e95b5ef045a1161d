"""Pieces of generated Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable

#: Characters that begin markup.
_MARKUP = "*_<"


def escape(text: str) -> str:
    """Return text in which Markdown sees no markup."""
    for character in _MARKUP:
        text = text.replace(character, f"\\{character}")
    return text


def escape_prose(text: str) -> str:
    """Return text in which Markdown sees no markup other than code."""
    pieces = text.split("`")
    pieces[::2] = map(escape, pieces[::2])
    return "`".join(pieces)


def format_source(source: str) -> str:
    """Return a source as a link where it is a URL, else as text."""
    if source.startswith("http") and " " not in source:
        return f"<{source}>"
    return escape(source)


def join_code(names: Iterable[str]) -> str:
    """Return names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def join_items(items: Iterable[str]) -> str:
    """Return items as a list."""
    return "\n".join(f"- {item}" for item in items)


def join_parts(parts: Iterable[str]) -> str:
    """Return headings, paragraphs and lists as a page."""
    return "\n\n".join(parts) + "\n"


def format_table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; a vertical bar in a cell is escaped."""
    header_cells = list(headers)
    rules = ["---"] * len(header_cells)
    lines = [_format_row(header_cells), _format_row(rules)]
    lines += map(_format_row, rows)
    return "\n".join(lines)


def _format_row(cells: Iterable[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    row = " | ".join(escaped)
    return f"| {row} |"
