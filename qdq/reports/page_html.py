"""Pages as one HTML file without links to other files: it opens from the attachment of a mail."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec

from qdq import __version__
from qdq.optional_packages import require_package
from qdq.printable import escape_surrogates, escape_unprintable
from qdq.reports.page import EngineRow, Page, RangeHistogram
from qdq.reports.page_drawings import curve_svg, histogram_svg

if TYPE_CHECKING:
    from jinja2 import Template

#: The histograms that are printed; the graph shows all.
_MOST_HISTOGRAMS = 12

#: The characters of a tensor's name that fit above its histogram.
_MOST_CHARACTERS = 38

#: The places of a finding that are listed.
_MOST_PLACES = 50

#: What ends a script element or a line of a script, as JSON escapes it.
_SCRIPT_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}

_TEMPLATE, _STYLE, _SCRIPT = "page_template.html", "page_style.css", "page_graph.js"


def render_html(page: Page) -> str:
    """Return a page as HTML, whatever names are in it.

    Raises MissingPackageError without Jinja2.
    """
    require_package("jinja2")
    from markupsafe import Markup

    content: dict[str, Any] = _escape_texts(msgspec.to_builtins(page))
    graph = content.pop("graph")
    return _load_template().render(
        page=content,
        version=__version__,
        graph=graph,
        graph_json=Markup(_encode_graph(page)) if graph else "",
        style=Markup(_read(_STYLE)),
        script=Markup(_read(_SCRIPT)),
        curves=[(curve.title, Markup(curve_svg(curve))) for curve in page.curves],
        histograms=list(map(_draw_histogram, page.histograms[:_MOST_HISTOGRAMS])),
        targets=list(_group_engines(page.engines)),
        most_places=_MOST_PLACES,
    )


@cache
def _load_template() -> Template:
    """Return the template, which escapes every value that is no markup."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_read(_TEMPLATE))


def _read(name: str) -> str:
    return resources.files("qdq.reports").joinpath(name).read_text(encoding="utf-8")


def _encode_graph(page: Page) -> str:
    """Return the network and the histograms as JSON that can stand in a script element."""
    from qdq.reports.page_graph import PageBlock, PageInput, PageNode

    histograms: dict[str, list[Any]] = {}
    for item in page.histograms:
        histograms[item.tensor] = [item.largest, item.amax, item.counts]
    content = msgspec.to_builtins(page.graph)
    content["histograms"] = histograms
    content["fields"] = {
        "node": PageNode.__struct_fields__,
        "input": PageInput.__struct_fields__,
        "block": PageBlock.__struct_fields__,
    }
    text = msgspec.json.encode(_escape_texts(msgspec.to_builtins(content))).decode()
    for character, code in _SCRIPT_ESCAPES.items():
        text = text.replace(character, code)
    return text


def _escape_texts(content: Any) -> Any:
    """Return dicts, lists and texts with the escapes of characters that cannot be printed."""
    if isinstance(content, str):
        return escape_unprintable(content)
    if isinstance(content, dict):
        return {escape_unprintable(key): _escape_texts(item) for key, item in content.items()}
    if isinstance(content, (list, tuple)):
        return list(map(_escape_texts, content))
    return escape_surrogates(content)


def _draw_histogram(histogram: RangeHistogram) -> dict[str, Any]:
    """Return a histogram with its title, which is the end of the name: there names differ."""
    from markupsafe import Markup

    name = escape_unprintable(histogram.tensor)
    title = name if len(name) <= _MOST_CHARACTERS else f"…{name[1 - _MOST_CHARACTERS :]}"
    drawing = Markup(histogram_svg(histogram))
    return {"name": name, "title": title, "text": _describe(histogram), "drawing": drawing}


def _describe(histogram: RangeHistogram) -> str:
    text = f"largest {histogram.largest:.4g}, amax {histogram.amax:.4g}"
    if histogram.amax < histogram.largest:
        return f"{text}, ratio {histogram.largest / histogram.amax:.3g}"
    return text


def _group_engines(rows: tuple[EngineRow, ...]) -> Iterator[dict[str, Any]]:
    """Yield the engines of each target, with the length of a bar for the bytes of each."""
    for target, kind in dict.fromkeys((row.target, row.kind) for row in rows):
        engines = [row for row in rows if (row.target, row.kind) == (target, kind)]
        most = max(row.megabytes for row in engines) or 1.0
        listed: list[dict[str, Any]] = []
        for row in engines:
            listed.append(
                {**_escape_texts(msgspec.to_builtins(row)), "share": row.megabytes / most}
            )
        yield {
            "target": escape_unprintable(target),
            "kind": kind,
            "engines": listed,
            "has_types": any(row.types for row in engines),
            "has_times": any(row.milliseconds is not None for row in engines),
        }
