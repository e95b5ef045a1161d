"""Lines and records on standard output, and the file names in front of errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from qdq.cli.terminal import is_styled, print_styled_line, print_styled_sections
from qdq.cli.verbosity import is_quiet
from qdq.errors import PlanError
from qdq.printable import escape_unprintable
from qdq.reports.json_output import to_json
from qdq.reports.sections import Section, sections_text
from qdq.stage_log import LOGGER


def print_line(text: str) -> None:
    """Print one line, whatever names of a model are in it."""
    if is_styled():
        print_styled_line(text)
    else:
        click.echo(escape_unprintable(text))


def print_error(text: str) -> None:
    """Print one line on standard error."""
    LOGGER.error("%s", text)
    click.echo(escape_unprintable(text), err=True)


def print_note(text: str) -> None:
    """Print one line on standard error that is no error: `--quiet` leaves it out."""
    LOGGER.warning("%s", text)
    if not is_quiet():
        click.echo(escape_unprintable(text), err=True)


def print_record(layout: str, record: Any, sections: Sequence[Section]) -> None:
    """Print a record as JSON, or its sections as text."""
    if layout == "json":
        click.echo(to_json(record), nl=False)
    else:
        print_sections(sections)


def print_summary(layout: str, record: Any, sections: Sequence[Section]) -> None:
    """Print the record of what was written; `--quiet` leaves its text out, JSON is printed."""
    if layout == "json" or not is_quiet():
        print_record(layout, record, sections)


def print_sections(sections: Sequence[Section]) -> None:
    """Print sections as text; the title of a section that is a table alone may be empty."""
    if is_styled():
        print_styled_sections(sections)
    else:
        click.echo(sections_text(sections).lstrip("\n"), nl=False)


def print_summary_line(text: str) -> None:
    """Print one line about what was written; `--quiet` leaves it out."""
    if not is_quiet():
        print_line(text)


def print_written(paths: Sequence[Path], following: Sequence[str] = ()) -> None:
    """Print the names of the files that a command wrote, if any, then lines on what follows."""
    if is_quiet():
        return
    if paths:
        click.echo()
        print_line(f"wrote {join_paths(paths)}")
    if following:
        click.echo()
    for line in following:
        print_line(line)


def join_paths(paths: Sequence[Path]) -> str:
    """Return paths in one line, separated by commas."""
    return ", ".join(map(str, paths))


@contextmanager
def name_files_in_errors(*paths: Path) -> Iterator[None]:
    """Put the names of plan, scales and ranges files, if any, in front of a PlanError."""
    try:
        yield
    except PlanError as error:
        if not paths:
            raise
        raise PlanError(f"{join_paths(paths)}: {error}") from error
