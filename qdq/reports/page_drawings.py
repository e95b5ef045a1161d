"""Histograms and curves of a page as SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

import msgspec

from qdq.printable import escape_unprintable
from qdq.reports.page import Curve, RangeHistogram

#: Sizes of a histogram in pixels.
_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT = 288, 72

#: Sizes of a curve, and of the margins for its labels.
_CURVE_WIDTH, _CURVE_HEIGHT = 720, 240
_LEFT, _BOTTOM, _TOP, _RIGHT = 52, 40, 14, 18

#: The height of the lower axis of a curve, and the end of the axis.
_FLOOR = _CURVE_HEIGHT - _BOTTOM
_END = _CURVE_WIDTH - _RIGHT

#: The number of steps of an axis that is aimed at.
_STEPS = 5

#: The points of a curve up to which each is drawn.
_MOST_DOTS = 120


class _Axis(msgspec.Struct, frozen=True):
    """The round values along an axis, and where it begins and ends in pixels."""

    ticks: tuple[float, ...]
    start: int
    end: int

    def place(self, value: float) -> float:
        """Return the place of a value in pixels."""
        first, last = self.ticks[0], self.ticks[-1]
        return round(self.start + (value - first) / (last - first) * (self.end - self.start), 1)


def histogram_svg(histogram: RangeHistogram) -> str:
    """Return a histogram with logarithmic counts, and a line where its values are clipped."""
    end = max(histogram.largest, histogram.amax)
    clipped_at = histogram.amax / end * _HISTOGRAM_WIDTH
    label = f"{histogram.tensor}: largest {histogram.largest:.4g}, amax {histogram.amax:.4g}"
    lines = [_open_svg(_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT, label)]
    width = _HISTOGRAM_WIDTH * histogram.largest / end / len(histogram.counts)
    lines += _draw_bins(histogram.counts, width, clipped_at)
    x = round(min(clipped_at, _HISTOGRAM_WIDTH - 1.0), 1)
    lines.append(f'<line class="amax" x1="{x}" x2="{x}" y1="0" y2="{_HISTOGRAM_HEIGHT}"/>')
    return "".join([*lines, "</svg>"])


def _draw_bins(counts: Sequence[int], width: float, clipped_at: float) -> Iterator[str]:
    """Yield a bar for each bin, those beyond the clipping in another class."""
    tallest = math.log1p(max(counts)) or 1.0
    for number, count in enumerate(counts):
        x = number * width
        height = (_HISTOGRAM_HEIGHT - 4) * math.log1p(count) / tallest
        kind = "bin" if x < clipped_at else "bin clipped"
        yield (
            f'<rect class="{kind}" x="{x:.1f}" y="{_HISTOGRAM_HEIGHT - height:.1f}" '
            f'width="{max(width - 0.6, 0.4):.1f}" height="{height:.1f}"/>'
        )


def curve_svg(curve: Curve) -> str:
    """Return a curve with its axes; the name of a point is shown where the pointer rests."""
    across = _Axis(_find_ticks([point.x for point in curve.points]), _LEFT, _END)
    upwards = _Axis(_find_ticks([point.y for point in curve.points]), _FLOOR, _TOP)
    places: list[tuple[float, float]] = []
    for point in curve.points:
        places.append((across.place(point.x), upwards.place(point.y)))
    path = " ".join(f"{x},{y}" for x, y in places)
    lines = [
        _open_svg(_CURVE_WIDTH, _CURVE_HEIGHT, f"{curve.title}: {curve.y_label}"),
        *_draw_grid(across, upwards),
        f'<polyline class="curve" points="{path}"/>',
        *_draw_dots(curve, places),
        _text((_LEFT + _CURVE_WIDTH) / 2, _CURVE_HEIGHT - 6, curve.x_label, "middle"),
        _text(_LEFT, 9, curve.y_label, "start"),
        "</svg>",
    ]
    return "".join(lines)


def _draw_grid(across: _Axis, upwards: _Axis) -> Iterator[str]:
    """Yield the lines of a grid with the values that they stand for."""
    for tick in across.ticks:
        x = across.place(tick)
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_FLOOR}"/>'
        yield _text(x, _FLOOR + 14, f"{tick:g}", "middle")
    for tick in upwards.ticks:
        y = upwards.place(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_END}" y1="{y}" y2="{y}"/>'
        yield _text(_LEFT - 6, y + 4, f"{tick:g}", "end")


def _draw_dots(curve: Curve, places: Sequence[tuple[float, float]]) -> Iterator[str]:
    if len(places) > _MOST_DOTS:
        return
    for point, (x, y) in zip(curve.points, places, strict=True):
        title = f"{point.label}: {point.y:.4g}"
        yield f'<circle class="dot" cx="{x}" cy="{y}" r="3"><title>{_clean(title)}</title></circle>'


def _open_svg(width: int, height: int, label: str) -> str:
    name = _clean(label).replace('"', "&quot;")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{_clean(text)}</text>'


def _clean(text: str) -> str:
    return escape(escape_unprintable(text))


def _find_ticks(values: Sequence[float]) -> tuple[float, ...]:
    """Return round values that enclose some values: multiples of 1, 2 or 5 times a power of 10."""
    least, largest = min(values), max(values)
    spread = largest - least or abs(largest) or 1.0
    rough = spread / _STEPS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= rough)
    first = math.floor(least / step)
    last = max(math.ceil(largest / step), first + 1)
    return tuple(round(number * step, 12) for number in range(first, last + 1))
