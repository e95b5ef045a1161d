"""The output formats of `qdq check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from qdq import __version__
from qdq.checking.baseline import BaselineEntry
from qdq.checking.catalogue import PROBLEMS, SEVERITIES
from qdq.checking.finding import Finding
from qdq.cli.check_session import CheckSession
from qdq.cli.check_statistics import CheckStatistics, CodeCounter
from qdq.cli.messages import print_line, print_note, print_sections
from qdq.reports.json_output import to_json
from qdq.reports.sarif import CheckedModel, to_github, to_sarif
from qdq.reports.sections import count_noun

#: Models with findings from which on a table sums them up.
_LEAST_TABLE_MODELS = 2

#: Findings of one code that the text shows.
_MAX_FINDINGS = 12


class CheckAnswer(msgspec.Struct, frozen=True):
    """The findings in each model, and entries of the baseline that are gone."""

    models: tuple[CheckedModel, ...]
    #: Findings of the baseline that the checked models no longer have.
    stale: tuple[BaselineEntry, ...] = ()


def _print_text(session: CheckSession, models: Sequence[Path]) -> None:
    counts: Counter[str] = Counter()
    clean_count = 0
    codes = CodeCounter()
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
        if codes.model_count >= _LEAST_TABLE_MODELS:
            print_sections([codes.make_table()])
    _print_stale_entries(session)


def _format_model(checked: CheckedModel) -> Iterator[str]:
    """Yield the lines about one model. Findings of one code are together, errors come first."""
    for change in checked.fixed:
        yield f"{checked.model}: fixed: {change}"
    if checked.output:
        yield f"{checked.model}: wrote {checked.output}"
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
    print_note(
        f"{session.settings.baseline}: {len(entries)} of its findings no longer exist, such as "
        f"{example}. Write it again with --write-baseline."
    )


def _print_differences(session: CheckSession, models: Sequence[Path]) -> None:
    """Print the changes that `--fix` would make, as `qdq diff` shows them."""
    for checked in session.check_models(models):
        if checked.failure:
            continue
        changes = checked.would_fix or ()
        counted = count_noun(len(changes), "change") if changes else "no change"
        print_line(f"{checked.model}: {counted} by --fix")
        for change in changes:
            print_line(f"  {change}")
    if len(models) > 1:
        print_line(f"--fix would change {session.fixable_count} of {len(models)} models")


def _print_statistics(session: CheckSession, models: Sequence[Path]) -> None:
    codes = _count_codes(session, models)
    print_line(_format_statistics(session, codes, len(models)))
    if codes.model_count:
        print_sections([codes.make_table()])
    _print_stale_entries(session)


def _format_statistics(session: CheckSession, codes: CodeCounter, model_count: int) -> str:
    counts: Counter[str] = Counter()
    for count in codes.list_counts():
        counts[count.severity] += count.findings
    line = f"{count_noun(model_count, 'model')}: {_format_counts(counts)}"
    if session.failure_count:
        line = f"{line}; {session.failure_count} could not be checked"
    return line


def _print_json_statistics(session: CheckSession, models: Sequence[Path]) -> None:
    codes = _count_codes(session, models)
    statistics = CheckStatistics(codes.list_counts(), len(models), session.failure_count)
    click.echo(to_json(statistics), nl=False)


def _count_codes(session: CheckSession, models: Sequence[Path]) -> CodeCounter:
    codes = CodeCounter()
    for checked in session.check_models(models):
        codes.add(checked.findings)
    return codes


#: Checks models and prints some of what was found.
Printer = Callable[[CheckSession, Sequence[Path]], None]

#: Prints the findings, by output format.
PRINTERS: Mapping[str, Printer] = {
    "text": _print_text,
    "json": _print_json,
    "sarif": _print_sarif,
    "github": _print_github,
}

#: Prints what a fix changes, and the findings by code.
DIFF_PRINTERS: Mapping[str, Printer] = {"text": _print_differences, "json": _print_json}
STATISTICS_PRINTERS: Mapping[str, Printer] = {
    "text": _print_statistics,
    "json": _print_json_statistics,
}
