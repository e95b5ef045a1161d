"""The findings of a page: those of one code and fix together, with their documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from qdq.checking.catalogue import PROBLEMS, SEVERITIES
from qdq.checking.finding import Finding
from qdq.reports.page import FindingGroup
from qdq.reports.sections import count_noun


def group_findings(findings: Iterable[Finding], model: str = "") -> tuple[FindingGroup, ...]:
    """Return the findings in a model by code and fix, in the order of the catalogue."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.code, finding.fix), []).append(finding)
    codes = list(PROBLEMS)
    ordered = sorted(groups.values(), key=lambda group: codes.index(group[0].code))
    return tuple(_make_group(group, model) for group in ordered)


def _make_group(findings: Sequence[Finding], model: str) -> FindingGroup:
    first = findings[0]
    see = PROBLEMS[first.code].see
    return FindingGroup(
        code=first.code,
        severity=first.severity,
        model=model,
        cost=first.cost,
        fix=first.fix,
        page=first.page,
        places=tuple(map(_describe_place, findings)),
        see=see if is_address(see) else "",
    )


def is_address(page: str) -> bool:
    """Whether a page is the address of one, and no path in the project."""
    return page.startswith("https://")


def _describe_place(finding: Finding) -> str:
    place = f"{finding.where}: {finding.problem}" if finding.where else finding.problem
    return f"{place} [{finding.rule}]" if finding.rule else place


def count_severities(findings: Iterable[Finding]) -> list[str]:
    """Return the number of findings of each severity that occurs, such as ``2 warnings``."""
    counts = Counter(finding.severity for finding in findings)
    return [count_noun(counts[name], name) for name in SEVERITIES if counts[name]]


def note_findings(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Return a line for each finding at a node, by the label of the node."""
    notes: dict[str, list[str]] = {}
    for finding in findings:
        if finding.node:
            notes.setdefault(finding.node, []).append(
                f"{finding.severity} {finding.code}: {finding.problem}"
            )
    return notes
