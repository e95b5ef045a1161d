"""Sections of the documentation: what the pages in Markdown say about a name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from qdq.documentation import locate_page, pages_folder

_SUFFIX = ".md"

#: The pages whose headings of a level are names: of commands, findings and rules.
_NAMED_SECTIONS = (("commands", 2), ("findings", 3), ("rules", 3))

#: The page whose items are names of facts, and how such an item begins.
_FACTS_PAGE = "facts"
_FACT_ITEM = re.compile(r"^- (?:\*\*)?`([a-z0-9-]+)`")

_HEADING = re.compile(r"^(#+) (.*)$")
_FENCE = "```"

#: Comments on lines of their own, with the empty line after them.
_COMMENTS = re.compile(r"(?:^<!-- .* -->\n)+\n?", re.MULTILINE)

#: What headings of commands begin with.
_PROGRAM = "qdq "


class DocumentationSection(msgspec.Struct, frozen=True):
    """A page of the documentation, or a part of one that describes a name."""

    #: The page by its path in the documentation, without a suffix, such as ``how-to/images``.
    page: str
    #: The name that it describes: of a command, finding, rule or fact; "" for a whole page.
    name: str
    #: The text in Markdown.
    text: str

    @property
    def address(self) -> str:
        """Where the site has it."""
        if self.page == _FACTS_PAGE or not self.name:
            return locate_page(self.page)
        return locate_page(self.page, _read_heading(self.text).lower().replace(" ", "-"))


def list_pages() -> list[str]:
    """Return the paths of all pages without their suffix, sorted."""
    folder = pages_folder()
    paths = [path.relative_to(folder) for path in folder.rglob(f"*{_SUFFIX}")]
    return sorted(path.with_suffix("").as_posix() for path in paths)


def read_title(page: str) -> str:
    """Return the first heading of a page."""
    return _read_heading(_read_page(page))


def list_sections() -> list[DocumentationSection]:
    """Return the sections about commands, findings, rules and facts."""
    sections: list[DocumentationSection] = []
    for page, level in _NAMED_SECTIONS:
        sections += _split_page(page, level)
    sections += _split_facts()
    return sections


def find_sections(name: str) -> list[DocumentationSection]:
    """Return the sections about a name, and the pages of that name.

    A page is named by its path or by the last part of it, with or without its suffix. A name with
    the suffix is only that of a page.
    """
    matches = []
    if not name.endswith(_SUFFIX):
        matches = [section for section in list_sections() if section.name == name]
    wanted = name.removesuffix(_SUFFIX)
    for page in list_pages():
        if wanted in (page, page.rpartition("/")[2]):
            matches.append(DocumentationSection(page, "", _read_page(page)))
    return matches


def _split_page(page: str, level: int) -> Iterator[DocumentationSection]:
    """Yield the sections of a page whose headings have a level, each up to the next heading."""
    name, lines = "", list[str]()
    is_code = False
    for line in _read_page(page).splitlines():
        is_code ^= line.startswith(_FENCE)
        heading = None if is_code else _HEADING.match(line)
        if heading and len(heading[1]) <= level:
            if name:
                yield _make_section(page, name, lines)
            name = heading[2] if len(heading[1]) == level else ""
            lines = []
        lines.append(line)
    if name:
        yield _make_section(page, name, lines)


def _split_facts() -> Iterator[DocumentationSection]:
    for line in _read_page(_FACTS_PAGE).splitlines():
        item = _FACT_ITEM.match(line)
        if item:
            yield _make_section(_FACTS_PAGE, item[1], [line])


def _make_section(page: str, heading: str, lines: list[str]) -> DocumentationSection:
    text = "\n".join(lines).rstrip() + "\n"
    return DocumentationSection(page, heading.removeprefix(_PROGRAM), text)


def _read_page(page: str) -> str:
    """Return the text of a page without comments, which no reader of the site sees either."""
    path = Path(pages_folder(), f"{page}{_SUFFIX}")
    return _COMMENTS.sub("", path.read_text("utf-8"))


def _read_heading(text: str) -> str:
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            return heading[2]
    return ""
