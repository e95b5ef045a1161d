"""The catalogue of problems that `qdq check` finds, by code."""

from __future__ import annotations

from collections.abc import Mapping

from qdq.checking.error_catalogue import ERROR_PROBLEMS
from qdq.checking.note_catalogue import NOTE_PROBLEMS
from qdq.checking.problem import ERROR, NOTE, SEVERITIES, WARNING, Problem
from qdq.checking.warning_catalogue import WARNING_PROBLEMS

__all__ = [
    "ERROR",
    "NOTE",
    "PROBLEMS",
    "SEVERITIES",
    "WARNING",
    "Problem",
]

#: All kinds of findings by code, errors first.
PROBLEMS: Mapping[str, Problem] = {
    problem.code: problem for problem in (*ERROR_PROBLEMS, *WARNING_PROBLEMS, *NOTE_PROBLEMS)
}
