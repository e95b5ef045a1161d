"""Pages as HTML: what is on them, and names of models that try to be markup."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import msgspec
import pytest

from qdq.errors import MissingPackageError
from qdq.reports.page import Page
from qdq.reports.page_html import render_html
from qdq.reports.report_files import check_report_path
from tests.support.pages import HOSTILE, full_page, small_page
from tests.support.paths import ROOT


class Elements(HTMLParser):
    """The elements of a page, the attributes that name other files, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "srcset", "data"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.names[-1:] == ["script"] and self.cdata_elem:
            self.scripts.append(data)
        else:
            self.text += data


def titles(page: Page) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", render_html(page))


def test_everything_that_is_known_is_shown_once() -> None:
    assert titles(full_page()) == [
        "Look", "Plan conv", "Engines side by side", "The network", "Sensitivity", "Ranges", "Findings", "Details",
    ]  # fmt: skip


def test_there_are_no_empty_sections() -> None:
    text = render_html(small_page())
    assert titles(small_page()) == ["The check has no findings"]
    assert "graph-data" not in text.split("<script>")[0]


def test_the_file_names_no_other_file() -> None:
    elements = Elements(render_html(full_page()))
    assert elements.links == []
    assert "default-src 'none'" in render_html(full_page())
    assert not re.search(r"@import|url\(", render_html(full_page()))


def test_hostile_names_stay_text() -> None:
    plain, hostile = Elements(render_html(full_page())), Elements(render_html(full_page(HOSTILE)))
    assert hostile.names == plain.names
    assert "img" not in hostile.names
    assert '</script><img src=x onerror="alert(1)">' in hostile.text
    assert "\u2028" not in hostile.text
    assert "\u202e" not in hostile.text
    assert r"\u202e\n<!-- ${7*7} {{7*7}} é" in hostile.text


def test_the_network_in_the_script_is_the_network() -> None:
    page = full_page(HOSTILE)
    data = json.loads(Elements(render_html(page)).scripts[0])
    assert page.graph is not None
    names = [node[data["fields"]["node"].index("name")] for node in data["nodes"]]
    assert len(names) == len(page.graph.nodes) == 30
    assert names[0].startswith("/a/Relu_0</script>")
    assert list(data["histograms"].values()) == [[2.0, 1.5, [9, 5, 0, 1]], [1.0, 1.0, [1, 1]]]
    assert data["block_links"]


def test_the_engine_says_how_it_was_obtained() -> None:
    text = render_html(full_page())
    assert '<span class="kind compiled">compiled</span>' in text
    assert "does not build: no kernel for conv" in text
    assert "0.250" in text


def test_values_that_are_clipped_are_marked() -> None:
    text = render_html(full_page())
    assert text.count('class="bin clipped"') == 1
    assert "largest 2, amax 1.5, ratio 1.33" in text


def test_findings_link_to_their_documentation() -> None:
    page = full_page()
    group = msgspec.structs.replace(page.findings[0], page="https://example.org/findings/#opset")
    linked = msgspec.structs.replace(page, findings=(group,))
    assert "docs/findings.md#opset" in render_html(page)
    assert Elements(render_html(linked)).links == ["https://example.org/findings/#opset"]


def test_without_jinja_the_report_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingPackageError, match=r"Jinja2, .*pip install 'qdq\[report\]'\."):
        check_report_path(ROOT / "r.html")
    check_report_path(ROOT / "r.md")
