"""`qdq docs` prints the section of a name or a page; the addresses are those of the site."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from qdq.checking.catalogue import PROBLEMS
from qdq.cli import cli
from qdq.documentation import SITE, locate_page
from qdq.reports.command_reference import commands_page
from qdq.reports.documentation_sections import find_sections, list_pages
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import shipped_sets
from tests.support.cli_runner import refused, run
from tests.support.paths import ROOT


def test_the_site_is_the_one_that_the_project_names() -> None:
    text = (ROOT / "pyproject.toml").read_text()

    assert re.findall(r"^Documentation = \"(.*)\"$", text, re.MULTILINE) == [SITE]
    assert text.count(SITE) == 1


def test_the_reference_of_commands_is_fresh() -> None:
    """`make docs` writes it again."""
    assert (ROOT / "docs" / "commands.md").read_text() == commands_page(cli)


def test_every_command_and_group_is_in_the_reference() -> None:
    context = click.Context(cli, info_name="qdq")
    for name in cli.list_commands(context):
        assert find_sections(name)
    for name in ("rules show", "rules list", "ranges merge", "ranges export"):
        (section,) = find_sections(name)
        assert section.text.startswith(f"## qdq {name}\n")


@pytest.mark.parametrize("code", PROBLEMS)
def test_every_finding_has_a_section_at_its_address(code: str) -> None:
    (section,) = find_sections(code)

    assert section.address == PROBLEMS[code].page == locate_page("findings", code)
    assert section.text.startswith(f"### {code}\n")
    assert PROBLEMS[code].title in section.text.replace("\\", "")


def test_every_shipped_rule_and_fact_has_a_section() -> None:
    for name in shipped_sets():
        for rule in load_rules([name]).rules:
            assert [s for s in find_sections(rule.name) if s.page == "rules"], rule.name
    for word in (*NODE_FACTS, *EDGE_FACTS):
        assert [s for s in find_sections(word) if s.page == "facts"], word


@pytest.mark.parametrize("name", ["how-to/images", "images", "images.md", "how-to/images.md"])
def test_a_page_is_found_by_its_path_and_by_its_name(name: str) -> None:
    (section,) = find_sections(name)

    assert section.text.startswith("# PTQ of an image model from a folder of pictures\n")
    assert "\n2. Quantize. `--samples 32` takes 32 pictures" in section.text
    assert section.address == locate_page("how-to/images")


def test_docs_prints_a_section_and_its_address() -> None:
    code, text, _ = run("docs", "half-quantized")

    assert code == 0
    assert text.startswith("### half-quantized\n")
    assert text.endswith(f"\n{SITE}findings/#half-quantized\n")


def test_docs_takes_a_command_of_two_words() -> None:
    assert run("docs", "rules", "show")[1].startswith("## qdq rules show\n")


def test_a_page_that_is_named_like_a_command_is_printed_with_its_suffix() -> None:
    text = run("docs", "sensitivity")[1]

    assert text.startswith("## qdq sensitivity\n")
    assert text.endswith("The page of this name: qdq docs sensitivity.md\n")
    assert run("docs", "sensitivity.md")[1].startswith("# Sensitivity")


def test_docs_lists_the_pages_with_their_titles() -> None:
    text = run("docs")[1]

    for page in list_pages():
        assert f"\n  {page} " in text
    assert "how-to/images" in text


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    message = refused(tmp_path, "docs", "half-quantised")

    assert message.startswith(
        "qdq: no finding, rule, fact, command or page 'half-quantised'. Did you mean "
        "'half-quantized'"
    )
    assert "lists the pages" in refused(tmp_path, "docs", "../pyproject")


def test_rules_show_links_a_shipped_rule_and_no_other(tmp_path: Path) -> None:
    assert f"page: {SITE}rules/#residual-inputs\n" in run("rules", "show", "residual-inputs")[1]
    run("new-rule", "mine", "--rules", tmp_path)
    shown = run("rules", "show", "mine", "--rules", "tensorrt", "--rules", tmp_path)[1]

    assert "page: " not in shown


def test_comments_of_pages_are_not_printed() -> None:
    for page in list_pages():
        (section,) = [item for item in find_sections(f"{page}.md") if item.page == page]
        assert "<!-- " not in section.text, page
