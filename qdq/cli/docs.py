"""`qdq docs`: the documentation in the terminal, without the network."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qdq.documentation import SITE
from qdq.errors import UsageError, did_you_mean
from qdq.reports.documentation_sections import (
    DocumentationSection,
    find_sections,
    list_pages,
    list_sections,
    read_title,
)


@click.command("docs")
@click.argument("words", nargs=-1, metavar="[CODE|RULE|COMMAND|PAGE]")
def command(words: tuple[str, ...]) -> None:
    """Print what the documentation says about a finding, rule, fact or command, or a page of it.

    Without a name, list the pages. The text is that of the site, in Markdown, and needs no network.
    A page whose name is also that of a command is printed by its file name, as in 'rules.md'.

    \b
    Example:
      qdq docs residual-in-float
      qdq docs rules show
      qdq docs how-to/images
    """
    if not words:
        _print_pages()
        return
    name = " ".join(words)
    matches = find_sections(name)
    if not matches:
        raise UsageError(_describe_unknown(name))
    _print_sections(matches)


def _print_pages() -> None:
    pages = list_pages()
    width = max(map(len, pages))
    click.echo(f"Pages of {SITE}; 'qdq docs PAGE' prints one.\n")
    for page in pages:
        click.echo(f"  {page.ljust(width)}  {read_title(page)}")


def _describe_unknown(name: str) -> str:
    names = {section.name for section in list_sections()}
    for page in list_pages():
        names |= {page, page.rpartition("/")[2]}
    hint = did_you_mean(name, sorted(names))
    return f"no finding, rule, fact, command or page {name!r}{hint} 'qdq docs' lists the pages."


def _print_sections(matches: Sequence[DocumentationSection]) -> None:
    """Print sections, each with its address; a page beside sections is only named."""
    has_section = any(section.name for section in matches)
    pages = []
    for section in matches:
        if has_section and not section.name:
            pages.append(section.page)
            continue
        click.echo(section.text)
        click.echo(section.address)
    for page in pages:
        click.echo(f"\nThe page of this name: qdq docs {page}.md")
