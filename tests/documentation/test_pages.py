"""The pages of the documentation do what they say: every command and snippet of the guides is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page_runner import read_blocks, run_page
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
GUIDES = [
    DOCS / "tutorial.md",
    *sorted((DOCS / "how-to").glob("*.md")),
    *sorted((DOCS / "concepts").glob("*.md")),
]

#: The fences that cannot be run here, with the reason that the page's source states.
NOT_RUN = {
    "tutorial.md": [
        "it installs packages; tests/cli/test_hooks.py and .ci/run install the project",
        "the setup of this page makes the same files",
    ],
    "machines.md": ["it needs a Dask scheduler and workers on other machines"],
    "pre-commit.md": [
        "pre-commit installs the hook from the network; tests/cli/test_hooks.py does so with a clone"
    ],
}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    problems = run_page(page, tmp_path)

    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_what_is_not_run_is_listed(page: Path) -> None:
    reasons = [block.reason for block in read_blocks(page) if block.reason]

    assert reasons == NOT_RUN.get(page.name, [])
