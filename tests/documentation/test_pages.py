"""The pages of the documentation do what they say: their commands and snippets are run."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from tests.support.page_runner import read_blocks, run_page
from tests.support.paths import ROOT

DOCS = ROOT / "docs"

#: Pages that `qdq rules docs` generates, and those of measurements that take hours.
EXEMPT = {
    "commands.md": "generated from the options; its examples are parsed by test_commands.py",
    "facts.md": "generated",
    "findings.md": "generated",
    "json.md": "generated",
    "rules.md": "generated",
    "kernels.md": "its commands compile thousands of networks; tests/engines run a part",
    "results.md": "benchmarks of models that are not in the repository",
    "reliability.md": "campaigns of hours; tests/integration run a part",
}
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(DOCS.glob("*.md")) if page.name not in {"tutorial.md", *EXEMPT}),
]
GUIDES = [
    DOCS / "tutorial.md",
    *sorted((DOCS / "how-to").glob("*.md")),
    *sorted((DOCS / "concepts").glob("*.md")),
    *PAGES,
]

#: The fences that cannot be run here, with the reason that the page's source states.
NOT_RUN = {
    "tutorial.md": [
        "it installs packages; tests/cli/test_hooks.py and .ci/run install the project",
        "the setup of this page makes the same files",
        "it needs the command-line tool of TensorRT-RTX",
    ],
    "machines.md": ["it needs a Dask scheduler and workers on other machines"],
    "README.md": [
        "it installs packages; .ci/run installs the project",
        "it installs packages; .ci/run runs make test",
    ],
    "getting-started.md": [
        "it installs packages; .ci/run installs the project",
        "it is for an interactive shell; tests/cli/test_completion.py completes",
    ],
    "reports.md": ["it needs a pull request on GitHub"],
    "pre-commit.md": [
        "pre-commit installs the hook from the network; tests/cli/test_hooks.py does so with a clone"
    ],
}


#: Pages with whole outputs, whose kernels, layers and versions are those of the pinned versions.
WHOLE_OUTPUTS = [ROOT / "README.md", DOCS / "getting-started.md", DOCS / "formats.md"]


def has_pinned_versions() -> bool:
    """Whether what computes these outputs is installed as constraints/test.txt states it."""
    text = (ROOT / "constraints" / "test.txt").read_text()
    for name in ("onnxruntime-gpu", "tensorrt-rtx-cu12"):
        *_, pinned = re.findall(rf"^{name}==([\d.]+)", text, re.MULTILINE)
        try:
            if metadata.version(name) != pinned:
                return False
        except metadata.PackageNotFoundError:
            return False
    return True


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    problems = run_page(page, tmp_path, compares=page not in WHOLE_OUTPUTS or has_pinned_versions())

    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_what_is_not_run_is_listed(page: Path) -> None:
    reasons = [block.reason for block in read_blocks(page) if block.reason]

    assert reasons == NOT_RUN.get(page.name, [])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_commands_and_snippets_are_in_fences_that_are_run(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)

    assert not re.findall(r"^ {4,}(?:\$ |qdq |python |import |from ).*", text, re.MULTILINE)
    for block in read_blocks(page):
        if not block.kind:
            assert "$ " not in block.text, f"{page.name}:{block.line}"


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_yaml_of_a_page_can_be_read(page: Path) -> None:
    for block in read_blocks(page):
        if block.kind == "yaml":
            assert list(yaml.safe_load_all(block.text)), f"{page.name}:{block.line}"


def test_every_page_is_run_or_exempt() -> None:
    pages = {page.name for page in DOCS.rglob("*.md")}

    assert pages == {page.name for page in GUIDES if page.name != "README.md"} | EXEMPT.keys()
