"""The output formats of `qdq check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from qdq import __version__
from qdq.checking.baseline import BaselineEntry
from qdq.checking.catalogue import PROBLEMS, SEVERITIES, Problem
from qdq.checking.finding import Finding
from qdq.cli.check_session import CheckSession
from qdq.cli.messages import print_line
from qdq.reports.json_output import to_json
from qdq.reports.sarif import CheckedModel, to_github, to_sarif
from qdq.reports.sections import Section, sections_text

#: Models with findings from which on a table sums them up.
_LEAST_TABLE_MODELS = 2

#: Findings of one code that the text shows.
_MAX_FINDINGS = 12


class CheckAnswer(msgspec.Struct, frozen=True):
    """The findings in each model, and entries of the baseline that are gone."""

    models: tuple[CheckedModel, ...]
    #: Findings of the baseline that the checked models no longer have.
    stale: tuple[BaselineEntry, ...] = ()


class Codes(msgspec.Struct, frozen=True):
    """The catalogue of findings."""

    codes: tuple[Problem, ...]


def print_codes(layout: str) -> None:
    """Print the codes of findings, as text sorted by severity."""
    if layout == "json":
        click.echo(to_json(Codes(tuple(PROBLEMS.values()))), nl=False)
        return
    for severity in SEVERITIES:
        for problem in PROBLEMS.values():
            if problem.severity == severity:
                print_line(f"{severity:8}{problem.code}: {problem.title}")


def _print_text(session: CheckSession, models: Sequence[Path]) -> None:
    counts: Counter[str] = Counter()
    clean_count = 0
    codes = _CodeCounts()
    for checked in session.check_models(models):
        if checked.failure:
            continue
        counts.update(finding.severity for finding in checked.findings)
        codes.add(checked.findings)
        if not checked.findings:
            clean_count += 1
        for line in _format_model(checked):
            print_line(line)
    if len(models) > 1:
        summary = f"{_format_counts(counts)}; {clean_count} without findings"
        if session.failure_count:
            summary = f"{summary}; {session.failure_count} could not be checked"
        print_line(f"{len(models)} models: {summary}")
        codes.print_table()
    _print_stale_entries(session)


class _CodeCounts:
    """The findings of each code, and the models that have them."""

    def __init__(self) -> None:
        self._findings: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        self._model_count = 0

    def add(self, findings: Sequence[Finding]) -> None:
        """Count the findings in one model."""
        codes = [finding.code for finding in findings]
        self._findings.update(codes)
        self._models.update(set(codes))
        self._model_count += bool(codes)

    def print_table(self) -> None:
        """Print a row for each code, where several models have findings."""
        if self._model_count < _LEAST_TABLE_MODELS:
            return
        rows = []
        for severity in SEVERITIES:
            for code in PROBLEMS:
                if code in self._findings and PROBLEMS[code].severity == severity:
                    rows.append((code, severity, self._findings[code], self._models[code]))
        table = Section("", (), ("code", "severity", "findings", "models"), tuple(rows))
        click.echo(sections_text([table]).lstrip("\n"), nl=False)


def _format_model(checked: CheckedModel) -> Iterator[str]:
    """Yield the lines about one model. Findings of one code are together, errors come first."""
    for change in checked.fixed:
        yield f"{checked.model}: fixed: {change}"
    counts = Counter(finding.severity for finding in checked.findings)
    yield f"{checked.model}: {_format_counts(counts)}"
    for findings in _group_findings(checked.findings):
        yield from _format_group(findings)


def _group_findings(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Return the findings of each code and fix, in the order of the catalogue."""
    codes = list(PROBLEMS)
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: codes.index(finding.code)):
        groups.setdefault((finding.code, finding.fix), []).append(finding)
    return list(groups.values())


def _format_group(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines about findings that share code, cost and fix."""
    first = findings[0]
    yield f"  {first.severity} {first.code}: {first.cost}"
    for finding in findings[:_MAX_FINDINGS]:
        yield f"    {_format_finding(finding)}"
    hidden_count = len(findings) - _MAX_FINDINGS
    if hidden_count > 0:
        yield f"    and {hidden_count} more (--format json has all)"
    yield f"    fix: {first.fix} ({first.page})"


def _format_finding(finding: Finding) -> str:
    if not finding.where:
        return finding.problem
    text = f"{finding.where}: {finding.problem}"
    if finding.rule:
        text = f"{text} [{finding.rule}]"
    return text


def _format_counts(counts: Mapping[str, int]) -> str:
    """Return the number of findings of each severity, such as ``1 error, 2 notes``."""
    parts = []
    for severity in SEVERITIES:
        count = counts.get(severity, 0)
        if count == 1:
            parts.append(f"1 {severity}")
        elif count:
            parts.append(f"{count} {severity}s")
    return ", ".join(parts) or "no findings"


def _print_json(session: CheckSession, models: Sequence[Path]) -> None:
    checked_models = tuple(session.check_models(models))
    answer = CheckAnswer(checked_models, session.stale_entries)
    click.echo(to_json(answer), nl=False)


def _print_sarif(session: CheckSession, models: Sequence[Path]) -> None:
    log = to_sarif(session.check_models(models), __version__)
    click.echo(log, nl=False)
    _print_stale_entries(session)


def _print_github(session: CheckSession, models: Sequence[Path]) -> None:
    for checked in session.check_models(models):
        for line in to_github(checked):
            print_line(line)
    _print_stale_entries(session)


def _print_stale_entries(session: CheckSession) -> None:
    """Print on standard error how many findings of the baseline no longer exist."""
    entries = session.stale_entries
    if not entries:
        return
    first = entries[0]
    example = f"{first.model}: {first.code} {first.where}".strip()
    print_line(
        f"{session.settings.baseline}: {len(entries)} of its findings no longer exist, such as "
        f"{example}. Write it again with --write-baseline.",
        err=True,
    )


#: Checks models and prints the findings, by output format.
PRINTERS: Mapping[str, Callable[[CheckSession, Sequence[Path]], None]] = {
    "text": _print_text,
    "json": _print_json,
    "sarif": _print_sarif,
    "github": _print_github,
}
