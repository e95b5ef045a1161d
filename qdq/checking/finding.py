"""Findings: what is wrong with a model, where, and what to do about it."""

from __future__ import annotations

import msgspec

from qdq.checking.catalogue import PROBLEMS
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong with a model, and what to do about it."""

    #: Stable name of the kind of finding; docs/findings.md describes each.
    code: str
    #: ``error``, ``warning`` or ``note``.
    severity: str
    #: The edge, or the node where it is about no edge.
    where: str
    #: Label of the node; "" where it is about the whole model.
    node: str
    problem: str
    #: What it costs.
    cost: str
    #: The rule that asks otherwise, or "" for what no rule decides.
    rule: str
    rule_text: str
    fix: str
    #: Documentation page, relative to the project's folder.
    page: str

    def __str__(self) -> str:
        by = f" [{self.rule}]" if self.rule else ""
        return f"{self.code}: {self.where}: {self.problem}{by}; {self.fix}"


def make_finding(
    code: str, where: Edge | str, problem: str, rule: str = "", says: str = "", fix: str = ""
) -> Finding:
    """Return a finding of a known code at an edge, or at a node by its label; severity, costs, fix and page are the catalogue's."""
    kind = PROBLEMS[code]
    node = qualified_name(where.graph, where.node) if isinstance(where, Edge) else where
    return Finding(
        code,
        kind.severity,
        str(where),
        node,
        problem,
        kind.cost,
        rule,
        says,
        fix or kind.fix,
        kind.page,
    )
