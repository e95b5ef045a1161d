"""Ranked bar charts as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import msgspec

from qdq.printable import escape_unprintable

#: Sizes in pixels.
_WIDTH = 960
_LABEL_WIDTH = 330
_TEXT_WIDTH = 170
_ROW = 20
_BAR = 13
_MARGIN = 12
_HEAD = 62

#: The characters of a label that fit; the whole label is shown where the pointer rests.
_MOST_CHARACTERS = 46

_COLOURS = ("#2a6f97", "#e07a1f", "#8d99ae")


class Bar(msgspec.Struct, frozen=True):
    """One bar of a chart."""

    label: str
    #: The lengths of its parts from left to right, in the unit of the chart; none is negative.
    parts: tuple[float, ...]
    #: The text at its end.
    text: str

    @property
    def length(self) -> float:
        """The length of the whole bar."""
        return sum(self.parts)


class BarChart(msgspec.Struct, frozen=True):
    """A chart of bars from top to bottom."""

    title: str
    subtitle: str
    #: The names of the parts, as many as the bars have.
    legend: tuple[str, ...]
    bars: tuple[Bar, ...]


def bar_chart_svg(chart: BarChart) -> str:
    """Return a chart as SVG, whatever names are in it."""
    height = _HEAD + _ROW * len(chart.bars) + _MARGIN
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _format_text(_MARGIN, 20, chart.title, 'font-size="15" font-weight="bold"'),
        _format_text(_MARGIN, 38, chart.subtitle, 'fill="#444"'),
        *_draw_legend(chart.legend),
    ]
    longest = max((bar.length for bar in chart.bars), default=0.0)
    scale = (_WIDTH - _LABEL_WIDTH - _TEXT_WIDTH) / longest if longest > 0.0 else 0.0
    for number, bar in enumerate(chart.bars):
        lines += _draw_bar(bar, _HEAD + _ROW * number, scale)
    return "\n".join([*lines, "</svg>", ""])


def _draw_legend(names: Sequence[str]) -> Iterator[str]:
    x = _MARGIN
    for number, name in enumerate(names):
        yield f'<rect x="{x}" y="46" width="10" height="10" fill="{_COLOURS[number]}"/>'
        yield _format_text(x + 15, 55, name)
        x += 150


def _draw_bar(bar: Bar, y: int, scale: float) -> Iterator[str]:
    """Yield the label, the parts and the text of a bar whose row begins at `y`."""
    baseline = y + _BAR
    label = escape_unprintable(bar.label)
    shown = label if len(label) <= _MOST_CHARACTERS else f"{label[: _MOST_CHARACTERS - 1]}…"
    title = f"<title>{escape(label)}</title>"
    yield (
        f'<text x="{_LABEL_WIDTH - 8}" y="{baseline}" text-anchor="end" '
        f'aria-label="{escape(label)}">{title}{escape(shown)}</text>'
    )
    x = float(_LABEL_WIDTH)
    for number, part in enumerate(bar.parts):
        width = max(part, 0.0) * scale
        yield (
            f'<rect x="{x:.2f}" y="{y + 2}" width="{width:.2f}" height="{_BAR}" '
            f'fill="{_COLOURS[number]}">{title}</rect>'
        )
        x += width
    yield _format_text(round(x + 6), baseline, bar.text)


def _format_text(x: int, y: int, text: str, attributes: str = "") -> str:
    separator = " " if attributes else ""
    content = escape(escape_unprintable(text))
    return f'<text x="{x}" y="{y}"{separator}{attributes}>{content}</text>'
