"""Pages as Markdown for a comment on a pull request: short, with folded details."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qdq.printable import encodable_name
from qdq.reports.markdown import escape_text
from qdq.reports.page import BAD, GOOD, LOOK, EngineRow, FindingGroup, Page
from qdq.reports.page_findings import is_address
from qdq.reports.sections import Section, count_noun

#: The most bytes of a comment: GitHub accepts 65,536 characters.
MOST_BYTES = 60_000

#: The most lines and rows of a section, places of a finding, and reasons of a verdict.
_MOST_LINES = 40
_MOST_PLACES = 10

#: The most characters of a text, which a name in it may exceed.
_MOST_CHARACTERS = 300

_MARKS = {GOOD: "✅", LOOK: "⚠️", BAD: "❌"}


def render_markdown(page: Page) -> str:
    """Return a page as Markdown of at most `MOST_BYTES`, whatever names are in it."""
    blocks = list(_list_blocks(page))
    text = ""
    for number, block in enumerate(blocks):
        rest = f"\n{count_noun(len(blocks) - number, 'part')} left out: a comment has no room.\n"
        longer = f"{text}\n{block}\n" if text else f"{block}\n"
        if len(encodable_name(longer + rest).encode()) > MOST_BYTES:
            return encodable_name(text + rest)
        text = longer
    return encodable_name(text)


def _list_blocks(page: Page) -> Iterator[str]:
    """Yield the parts of a comment, the most important ones first."""
    yield f"### qdq {page.command}: {_clean(page.title)}"
    yield f"{_MARKS[page.verdict.state]} **{_clean(page.verdict.headline)}**"
    if page.verdict.reasons:
        yield _list_items(page.verdict.reasons)
    if page.figures:
        rows = [(figure.label, figure.value, figure.note) for figure in page.figures]
        yield _format_rows(("", "", "compared with"), rows)
    if page.engines:
        yield _fold("Engines side by side", _format_engines(page.engines))
    for group in page.findings:
        title = f"{group.severity} {group.code}: {count_noun(len(group.places), 'place')}"
        yield _fold(title, _format_finding(group))
    for section in (*page.results, *page.details):
        content = _format_section(section)
        if content:
            yield _fold(section.title, content)


def _fold(title: str, content: str) -> str:
    """Return content that a click on its title shows."""
    return f"<details><summary>{_clean(title)}</summary>\n\n{content}\n\n</details>"


def _format_engines(engines: Sequence[EngineRow]) -> str:
    rows: list[tuple[str, ...]] = []
    for engine in engines:
        name = f"{engine.file}, smallest" if engine.is_smallest else engine.file
        cells = (f"{engine.megabytes:.4g}", str(engine.kernels), engine.types)
        if engine.failure:
            cells = ("does not build", "", engine.failure)
        rows.append((engine.target, engine.kind, name, *cells))
    headers = ("target", "", "file", "MB moved", "kernels", "types")
    if not any(row[-1] for row in rows):  # types are known of compiled engines that validate reads
        return _format_rows(headers[:-1], [row[:-1] for row in rows])
    return _format_rows(headers, rows)


def _format_finding(group: FindingGroup) -> str:
    page = f"<{group.page}>" if is_address(group.page) else _clean(group.page)
    head = f"{_clean(group.cost)}\n\n**Fix:** {_clean(group.fix)} ({page})"
    if group.model:
        head = f"{_clean(group.model)}\n\n{head}"
    return f"{head}\n\n{_list_items(group.places, _MOST_PLACES)}"


def _format_section(section: Section) -> str:
    parts: list[str] = []
    if section.lines:
        parts.append(_list_items(section.lines))
    if section.rows:
        parts.append(_format_rows(section.headers, section.rows))
    return "\n\n".join(parts)


def _list_items(items: Sequence[str], most: int = _MOST_LINES) -> str:
    lines = [f"- {_clean(item)}" for item in items[:most]]
    if len(items) > most:
        lines.append(f"- and {len(items) - most} more")
    return "\n".join(lines)


def _format_rows(headers: Iterable[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table of the first rows."""
    titles = list(headers)
    lines = [_join_cells(titles), f"|{' --- |' * len(titles)}"]
    lines += map(_join_cells, rows[:_MOST_LINES])
    if len(rows) > _MOST_LINES:
        lines.append(f"\nand {len(rows) - _MOST_LINES} more")
    return "\n".join(lines)


def _join_cells(cells: Iterable[Any]) -> str:
    texts = [_clean(str(cell)) for cell in cells]
    return f"| {' | '.join(texts)} |"


def _clean(text: str) -> str:
    """Return text that Markdown shows as it is, in one line of a limited length."""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS - 1]}…"
    return escape_text(text)
