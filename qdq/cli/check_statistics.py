"""The findings of `qdq check` counted by code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from qdq.checking.catalogue import PROBLEMS
from qdq.checking.finding import Finding
from qdq.cli.check_codes import sort_by_severity
from qdq.reports.sections import Section


class CodeCount(msgspec.Struct, frozen=True):
    """How often one code was found."""

    code: str
    #: ``error``, ``warning`` or ``note``.
    severity: str
    #: The number of findings.
    findings: int
    #: The number of models that have them.
    models: int


class CheckStatistics(msgspec.Struct, frozen=True):
    """The findings in all models by code, errors first."""

    codes: tuple[CodeCount, ...]
    #: The number of models that were checked.
    models: int
    #: The number of models that could not be checked.
    failures: int


class CodeCounter:
    """Counts the findings of each code, and the models that have them."""

    def __init__(self) -> None:
        #: The number of models that have findings.
        self.model_count = 0
        self._findings: Counter[str] = Counter()
        self._models: Counter[str] = Counter()

    def add(self, findings: Sequence[Finding]) -> None:
        """Count the findings in one model."""
        codes = [finding.code for finding in findings]
        self._findings.update(codes)
        self._models.update(set(codes))
        self.model_count += bool(codes)

    def list_counts(self) -> tuple[CodeCount, ...]:
        """Return the counts of the codes that were found, errors first."""
        problems = [PROBLEMS[code] for code in PROBLEMS if code in self._findings]
        counts = []
        for problem in sort_by_severity(problems):
            code = problem.code
            count = CodeCount(code, problem.severity, self._findings[code], self._models[code])
            counts.append(count)
        return tuple(counts)

    def make_table(self) -> Section:
        """Return a table with a row for each code that was found."""
        rows = [msgspec.structs.astuple(count) for count in self.list_counts()]
        return Section("", (), ("code", "severity", "findings", "models"), tuple(rows))
