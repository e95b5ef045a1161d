"""Test cases of rules, as `qdq test` runs them."""

from __future__ import annotations

from qdq.testing.case_runner import run_cases

__all__ = [
    "run_cases",
]
