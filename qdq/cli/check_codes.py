"""The codes of findings on the command line: their list, and what each of them means."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from qdq.checking.catalogue import PROBLEMS, SEVERITIES, Problem
from qdq.checking.selection import parse_codes
from qdq.cli.messages import print_line, print_sections
from qdq.reports.json_output import to_json
from qdq.reports.sections import Section

#: The value of ``--codes`` that lists all codes.
ALL_CODES = "all"


class Codes(msgspec.Struct, frozen=True):
    """The catalogue of findings, or those of its codes that were asked for."""

    codes: tuple[Problem, ...]


def print_codes(names: str, layout: str) -> None:
    """Print all codes of findings, or the meaning of those that `names` lists.

    `names` is `ALL_CODES`, or codes and severities separated by commas. Raises UsageError for an
    unknown one.
    """
    if names == ALL_CODES:
        problems = sort_by_severity(list(PROBLEMS.values()))
    else:
        codes = parse_codes([names], "--codes")
        problems = sort_by_severity([PROBLEMS[code] for code in PROBLEMS if code in codes])
    if layout == "json":
        click.echo(to_json(Codes(tuple(problems))), nl=False)
    elif names == ALL_CODES:
        for problem in problems:
            print_line(f"{problem.severity:8}{problem.code}: {problem.title}")
    else:
        print_sections(list(map(_explain, problems)))


def sort_by_severity(problems: Sequence[Problem]) -> list[Problem]:
    """Return kinds of findings, errors first, else in their order."""
    return sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))


def _explain(problem: Problem) -> Section:
    """Return the lines about one code: its cost, fix and evidence."""
    lines = [
        f"costs: {problem.cost}",
        f"fix: {problem.fix}",
        f"evidence: {problem.evidence}",
    ]
    if problem.see:
        lines.append(f"see: {problem.see}")
    lines.append(f"page: {problem.page}")
    title = f"{problem.severity} {problem.code}: {problem.title}"
    return Section(title, tuple(lines))
