"""Pieces of Markdown: generated pages, and the text of reports."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qdq.documentation import SITE
from qdq.printable import escape_unprintable

#: Characters that begin markup.
_MARKUP = "*_<"

#: Characters that are HTML, in renderers that know no backslash before them too.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

#: What begins or ends markup inside a line: code, emphasis, links, cells of tables. An underscore
#: inside a word and brackets without a target do not, so names such as conv_1[0] stay legible.
_INLINE_MARKUP = re.compile(r"[\\`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")

#: What begins a heading, a list, a quotation or a rule in an item of a list.
_BLOCK_MARKUP = re.compile(r"^(\s*)(#(?=[#\s])|[-+](?=\s)|[-=]{2,}|\d+(?=[.)]\s))")


def escape(text: str) -> str:
    """Return text in which Markdown sees no markup."""
    for character in _MARKUP:
        text = text.replace(character, f"\\{character}")
    return text


def escape_text(text: str) -> str:
    """Return text in one line that Markdown shows as it is: without markup, links and HTML."""
    shown = escape_unprintable(text)
    for character, entity in _ENTITIES.items():
        shown = shown.replace(character, entity)
    shown = _INLINE_MARKUP.sub(r"\\\g<0>", shown)
    return _BLOCK_MARKUP.sub(_escape_block, shown)


def _escape_block(match: re.Match[str]) -> str:
    indent, mark = match.groups()
    if mark.isdigit():
        return f"{indent}{mark}\\"
    return f"{indent}\\{mark}"


def escape_prose(text: str) -> str:
    """Return text in which Markdown sees no markup other than code."""
    pieces = text.split("`")
    pieces[::2] = map(escape, pieces[::2])
    return "`".join(pieces)


def format_source(source: str) -> str:
    """Return a source as a link where it is a URL, else as text.

    A page of the documentation is linked by its file, as from the other pages.
    """
    if source.startswith(SITE):
        file = source.removeprefix(SITE).rstrip("/") + ".md"
        return f"[{file}]({file})"
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
