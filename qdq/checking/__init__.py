"""Checks: findings in models that hold Q/DQ, with their catalogue and baselines."""

from __future__ import annotations

from qdq.checking.checker import check
from qdq.checking.finding import Finding
from qdq.checking.problem import Problem

__all__ = [
    "Finding",
    "Problem",
    "check",
]
