"""The site builds without the network and without a warning, and its pages load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import qdq
from qdq.documentation import SITE
from qdq.reports.documentation_sections import list_pages, list_sections
from tests.support.paths import ROOT

#: A port that nothing listens on: whoever wants the network fails.
NOWHERE = "http://127.0.0.1:9"

#: What a page loads by itself, unlike a link.
_LOADED = re.compile(
    r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link rel=\"?(?:stylesheet|icon)[^>]* href=\"?([^\" >]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, **proxies, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in list_pages():
        place = "" if page == "index" else page
        assert (site / place / "index.html").is_file(), page


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for match in _LOADED.findall(path.read_text()):
            address = match[0] or match[1]
            assert not address.startswith(("http", "//")), f"{path}: {address}"


def test_the_addresses_of_sections_are_places_in_the_site(site: Path) -> None:
    pages: dict[str, str] = {}
    for section in list_sections():
        page, _, anchor = section.address.removeprefix(SITE).partition("#")
        if page not in pages:
            pages[page] = (site / page / "index.html").read_text()
        if anchor:
            assert re.search(rf'id="?{re.escape(anchor)}[" >]', pages[page]), section.address


def test_the_reference_has_every_public_name(site: Path) -> None:
    text = (site / "reference" / "library" / "index.html").read_text()

    for name in qdq.__all__:
        if name != "__version__":
            assert re.search(rf'id="?qdq\.[\w.]+\.{name}[" >]', text), name


def test_the_navigation_has_every_page() -> None:
    _, _, text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")
    navigation = yaml.safe_load(text)

    def list_files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [file for value in values for file in list_files(value)]  # type: ignore[attr-defined]

    files = list_files(navigation)
    assert sorted(files) == sorted({*files})
    assert {f"{page}.md" for page in list_pages()} <= {*files}
