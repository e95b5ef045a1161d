"""The option --report, and the files that it names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from qdq.cli.options import OUTPUT_FILE
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic
from qdq.reports.report_files import ReportContent, check_report_path

#: Adds ``--report``, which the command receives as the paths `report`.
report_option = click.option(
    "--report",
    type=OUTPUT_FILE,
    multiple=True,
    metavar="FILE",
    help="Also write a report: a page (.html), a comment for a pull request (.md), .json or .txt; "
    "repeat for several.",
)


def check_reports(paths: Sequence[Path], force: bool) -> None:
    """Raise UsageError, before any work, for a report that could not be written at the end."""
    places: set[str] = set()
    for path in paths:
        check_report_path(path)
        check_output(path, force)
        place = os.path.realpath(path)
        if place in places:
            raise UsageError(f"{path}: two reports are the same file. Pass another file for one.")
        places.add(place)


def write_reports(paths: Sequence[Path], content: ReportContent) -> None:
    """Write a report to each path, in the form of its suffix."""
    for path in paths:
        write_atomic(path, content.render(path.suffix).encode())
