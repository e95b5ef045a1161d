"""Colours and tables of Rich where standard output is a terminal, and plain text elsewhere."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qdq.printable import escape_unprintable
from qdq.reports.sections import Section

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Styles of words in a line.
_STYLES = {
    re.compile(r"^ *error(?= )|\b\d+ errors?\b|\bfailed\b|\bcould not be checked\b"): "bold red",
    re.compile(r"^ *warning(?=[ :])|\b\d+ warnings?\b"): "bold yellow",
    re.compile(r"^ *note(?= )|\b\d+ notes?\b"): "bold cyan",
    re.compile(r"\bno findings\b|^ *fix(?=:)"): "green",
    re.compile(r"^ *(next|wrote)\b"): "bold",
    re.compile(r"docs/\w+\.md#[\w-]+"): "blue",
    re.compile(r"^ *\+ .*"): "green",
    re.compile(r"^ *- .*"): "red",
    re.compile(r"^ *[~!>] .*"): "yellow",
}

#: Styles of whole cells.
_CELL_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def is_styled() -> bool:
    """Whether standard output is a terminal that shows colours.

    NO_COLOR (no-color.org) and TERM=dumb ask for plain text.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout is not None and sys.stdout.isatty()


def print_styled_line(text: str) -> None:
    """Print one line with its words coloured; the terminal breaks it where it is too long."""
    _open_console().print(_style(text), soft_wrap=True)


def print_styled_sections(sections: Sequence[Section]) -> None:
    """Print sections with bold titles, and their tables as wide as the terminal at most."""
    console = _open_console()
    for position, section in enumerate(sections):
        if position:
            console.print()
        if section.title:
            console.print(_make_text(section.title, "bold"), soft_wrap=True)
        for line in section.lines:
            console.print(_style(f"  {line}"), soft_wrap=True)
        if section.rows:
            console.print(_make_table(section))


def _open_console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _make_text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(escape_unprintable(text), style=style)


def _style(text: str) -> Text:
    styled = _make_text(text)
    for pattern, style in _STYLES.items():
        styled.highlight_regex(pattern, style)
    return styled


def _make_table(section: Section) -> Any:
    """Return a table of Rich; cells that are too wide for the terminal are folded."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for header in section.headers:
        table.add_column(_make_text(header), overflow="fold")
    for row in section.rows:
        cells = [_make_text(str(cell), _CELL_STYLES.get(str(cell), "")) for cell in row]
        table.add_row(*cells)
    return Padding(table, (0, 0, 0, 2), expand=False)
