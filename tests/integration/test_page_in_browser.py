"""Pages in headless Chromium: scripts run without errors, and the network can be searched,
zoomed and folded with the mouse and with the keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from qdq.reports.page import Page as ReportPage
from qdq.reports.page_html import render_html
from tests.support.cli_runner import run
from tests.support.pages import HOSTILE, chain_graph, full_page, small_page
from tests.support.paths import NETWORKS

LARGE = 10_000
#: Milliseconds that a large page has to open or to answer.
PATIENCE = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Debian's Chromium, else the one that Playwright installed."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"Chromium does not start here: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


class Viewer:
    """A page in a tab, with what it wrote to the console."""

    def __init__(self, browser: Browser, path: Path, **context: object) -> None:
        self.tab: Page = browser.new_page(viewport={"width": 1280, "height": 900}, **context)  # type: ignore[arg-type]
        self.tab.set_default_timeout(PATIENCE)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.messages.append(message.text))
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())

    def items(self, kind: str) -> int:
        """Return the number of nodes (n) or blocks (b) that have elements."""
        return self.tab.locator(f"#graph g.item[id^={kind}]").count()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.locator("#graph").press(key)

    @property
    def about(self) -> str:
        """The name of what the panel describes."""
        return self.tab.locator("#node h3").inner_text()

    @property
    def zoom(self) -> int:
        return int(self.tab.locator("#zoom").inner_text().split()[0])


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[object]:
    viewers: list[Viewer] = []

    def open_tab(page: ReportPage, **context: object) -> Viewer:
        path = tmp_path / "r.html"
        path.write_text(render_html(page), encoding="utf-8")
        viewers.append(Viewer(browser, path, **context))
        return viewers[-1]

    yield open_tab
    for viewer in viewers:
        assert viewer.messages == []
        assert len(viewer.requests) == 1
        viewer.tab.close()


def test_a_search_unfolds_the_block_and_shows_the_node(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page())
    assert viewer.items("n") == 0

    viewer.tab.fill("#search", "relu_9")
    assert viewer.tab.locator("#hits li").all_inner_texts() == ["/a/Relu_9conv Relu INT8"]
    viewer.tab.press("#search", "Enter")

    assert viewer.about == "/a/Relu_9conv"
    assert viewer.tab.locator("#graph .current").get_attribute("id") == "n9"
    assert "rule some-rule: Quantize it." in viewer.tab.locator("#node").inner_text()
    assert viewer.tab.locator("#node a").get_attribute("href") == "https://example.org/rule"


def test_a_search_says_when_nothing_has_the_name(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page())
    viewer.tab.fill("#search", "no such node")
    assert viewer.tab.locator("#hits").inner_text() == "no node has this name"


def test_a_block_unfolds_and_folds_by_click(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page())
    blocks = viewer.items("b")
    viewer.tab.click("#b0")
    assert viewer.tab.locator("#b0").get_attribute("aria-expanded") == "true"
    assert viewer.items("n") > 1
    viewer.tab.click("#n1")
    assert viewer.about == "/a/Relu_1conv"
    viewer.tab.click("#b0", position={"x": 40, "y": 12})
    assert (viewer.items("n"), viewer.items("b")) == (0, blocks)


def test_the_keyboard_alone_is_enough(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page())
    viewer.press("ArrowRight", "Enter", "ArrowRight")
    assert viewer.about == "/a/Relu_0conv"
    assert "a note" in viewer.tab.locator("#node").inner_text()
    assert viewer.tab.locator("#graph").get_attribute("aria-activedescendant") == "n0"
    viewer.press("Escape")
    assert viewer.items("n") == 0
    viewer.press("End")
    assert viewer.tab.locator("#graph .current").get_attribute("id") != "b0"
    viewer.tab.keyboard.press("/")
    assert viewer.tab.evaluate("document.activeElement.id") == "search"


def test_zoom_by_buttons_keys_and_wheel(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page())
    assert viewer.zoom == 100
    viewer.tab.click("#larger")
    assert viewer.zoom == 125
    viewer.press("-", "-")
    assert viewer.zoom == 80
    viewer.tab.click("#unfold")
    viewer.press("0")
    graph = viewer.tab.locator("#graph")
    assert graph.evaluate("e => e.scrollHeight <= e.clientHeight + 1")
    before = viewer.zoom
    graph.hover()
    viewer.tab.keyboard.down("Control")
    viewer.tab.mouse.wheel(0, -300)
    viewer.tab.keyboard.up("Control")
    viewer.tab.wait_for_function(
        f"parseInt(document.querySelector('#zoom').textContent) > {before}"
    )


def test_errors_colour_the_nodes_where_they_are_measured(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page())
    viewer.tab.select_option("#colour", "error")
    assert "below 15 dB" in viewer.tab.locator("#legend").inner_text()
    viewer.tab.click("#b0")
    style = viewer.tab.locator("#n0 rect").nth(1).get_attribute("style")
    assert style == "fill:var(--heat0)"


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_colour_scheme(open_page, scheme: str, is_dark: bool) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page(), color_scheme=scheme)
    colour = viewer.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    paper = [int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(", ")]
    assert (max(paper) < 64) == is_dark


def test_print_shows_what_is_folded(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page(), color_scheme="dark")
    viewer.tab.emulate_media(media="print")
    assert (
        viewer.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    viewer.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert viewer.tab.locator("details[open]").count() == viewer.tab.locator("details").count() > 0
    assert viewer.tab.locator(".toolbar").is_hidden()
    viewer.tab.evaluate("document.querySelector('#unfold').click()")
    heights = "e => [e.offsetHeight, e.firstChild.getBoundingClientRect().height]"
    graph, drawing = viewer.tab.locator("#graph").evaluate(heights)
    assert graph + 1 > drawing > 0
    assert viewer.tab.pdf()[:5] == b"%PDF-"


def test_hostile_names_are_shown_as_text(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(full_page(HOSTILE))
    viewer.tab.click("#unfold")
    viewer.tab.fill("#search", "</script>")
    viewer.tab.press("#search", "Enter")
    assert "</script><img src=x" in viewer.about
    assert viewer.tab.locator("img").count() == 0


def test_a_page_without_a_network_opens(open_page) -> None:  # type: ignore[no-untyped-def]
    viewer = open_page(small_page())
    assert viewer.tab.locator("h2").all_inner_texts() == ["The check has no findings"]


def test_ten_thousand_nodes_stay_usable(open_page) -> None:  # type: ignore[no-untyped-def]
    page = msgspec.structs.replace(small_page(), graph=chain_graph(LARGE))
    viewer = open_page(page)
    assert 0 < viewer.items("b") < 200
    assert viewer.items("n") == 0

    viewer.tab.click("#unfold")
    assert 0 < viewer.items("n") < 1000
    viewer.tab.evaluate("document.querySelector('#graph').scrollTop = 1e5")
    viewer.tab.wait_for_function("!document.querySelector('#n0')")
    viewer.tab.fill("#search", f"_{LARGE - 3}")
    viewer.tab.press("#search", "Enter")
    assert viewer.about.endswith(f"_{LARGE - 3}")
    assert viewer.tab.locator("#graph .current").is_visible()
    viewer.tab.click("#fold")
    assert viewer.items("n") == 0


def test_the_page_of_a_real_run_opens(browser: Browser, tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    data = NETWORKS / "digits-calibration.npz"
    code, _, errors = run(
        "quantize", NETWORKS / "digits_attention.onnx", "-o", tmp_path / "q.onnx", "--data", data, "--report", report
    )  # fmt: skip
    assert code == 0, errors
    viewer = Viewer(browser, report)
    viewer.tab.fill("#search", "node_conv2d")
    viewer.tab.press("#search", "Enter")
    text = viewer.tab.locator("#node").inner_text()
    assert "rule weighted-inputs:" in text
    assert viewer.tab.locator("#node svg .amax").count() == 1
    assert viewer.messages == []
