"""Rules: files, the facts that they are written in, matching, and the kernel tables of targets."""

from __future__ import annotations

from qdq.rules.facts import Scene
from qdq.rules.kernel_tables import KernelTable
from qdq.rules.rule import Rule, RuleSet
from qdq.rules.rule_files import load_rules

__all__ = [
    "KernelTable",
    "Rule",
    "RuleSet",
    "Scene",
    "load_rules",
]
