"""The forms of a report: a page as HTML or Markdown, and the record as JSON or text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import UsageError
from qdq.optional_packages import require_package
from qdq.reports.json_output import to_json
from qdq.reports.sections import Section, sections_text

if TYPE_CHECKING:
    from qdq.reports.page import Page

_HTML, _MARKDOWN, _JSON, _TEXT = ".html", ".md", ".json", ".txt"

#: The suffixes of reports, which choose the format.
REPORT_SUFFIXES = (_HTML, _MARKDOWN, _JSON, _TEXT)


class ReportContent:
    """What a command reports, in every form."""

    def __init__(
        self, record: Any, sections: Callable[[], Sequence[Section]], page: Callable[[], Page]
    ) -> None:
        self._record = record
        self._list_sections = sections
        self._make_page = page

    @cached_property
    def page(self) -> Page:
        """The page, which is made only where a form needs it."""
        return self._make_page()

    def render(self, suffix: str) -> str:
        """Return the report in the form that a suffix of `REPORT_SUFFIXES` names."""
        if suffix == _HTML:
            from qdq.reports.page_html import render_html

            return render_html(self.page)
        if suffix == _MARKDOWN:
            from qdq.reports.page_markdown import render_markdown

            return render_markdown(self.page)
        if suffix == _JSON:
            return to_json(self._record)
        return sections_text(self._list_sections())


def check_report_path(path: Path) -> None:
    """Raise UsageError unless the path's suffix names a form.

    Raises MissingPackageError where the form needs a package that is not installed.
    """
    if path.suffix not in REPORT_SUFFIXES:
        suffixes = ", ".join(REPORT_SUFFIXES)
        raise UsageError(
            f"{path}: the suffix chooses the format, and {path.suffix!r} names none. "
            f"Pass a file that ends in {suffixes}."
        )
    if path.suffix == _HTML:
        require_package("jinja2")
