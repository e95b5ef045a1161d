"""Lines and records on standard output, and the file names in front of errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from qdq.errors import PlanError
from qdq.printable import escape_unprintable
from qdq.reports.json_output import to_json
from qdq.reports.sections import Section, sections_text


def print_line(text: str, err: bool = False) -> None:
    """Print one line, on standard error with `err`, whatever names of a model are in it."""
    click.echo(escape_unprintable(text), err=err)


def print_record(layout: str, record: Any, sections: Sequence[Section]) -> None:
    """Print a record as JSON, or its sections as text."""
    if layout == "json":
        click.echo(to_json(record), nl=False)
    else:
        print_sections(sections)


def print_sections(sections: Sequence[Section]) -> None:
    """Print sections as text; the title of a section that is a table alone may be empty."""
    click.echo(sections_text(sections).lstrip("\n"), nl=False)


def print_written(paths: Sequence[Path]) -> None:
    """Print the names of the files that a command wrote, after a blank line."""
    click.echo()
    print_line(f"wrote {join_paths(paths)}")


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
