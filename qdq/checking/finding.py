"""Findings: a problem of a model, its location and its fix."""

from __future__ import annotations

import msgspec

from qdq.checking.catalogue import PROBLEMS
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge


class Finding(msgspec.Struct, frozen=True):
    """One problem at one place of a model."""

    #: Stable name of the kind of finding; `qdq docs CODE` describes it.
    code: str
    #: ``error``, ``warning`` or ``note``.
    severity: str
    #: The edge, or the node where no edge is concerned, or "" for the whole model.
    where: str
    #: Label of the node; "" for the whole model.
    node: str
    #: A sentence without a full stop.
    problem: str
    #: The consequence, in whole sentences.
    cost: str
    #: The rule that asks otherwise, or "" where no rule decides.
    rule: str
    #: The sentence of that rule.
    rule_text: str
    #: The remedy, as an imperative without a capital and a full stop.
    fix: str
    #: The address of its description in the documentation.
    page: str

    def __str__(self) -> str:
        rule = f" [{self.rule}]" if self.rule else ""
        remedy = self.fix[:1].upper() + self.fix[1:]
        return f"{self.code}: {self.where}: {self.problem}{rule}. {remedy}."


def make_finding(
    code: str,
    location: Edge | str,
    problem: str,
    rule: str = "",
    rule_text: str = "",
    fix: str = "",
) -> Finding:
    """Return a finding of a known code at an edge, or at a node given by its label.

    Severity, cost and page come from the catalogue, and so does the fix where none is passed.
    """
    kind = PROBLEMS[code]
    return Finding(
        code=code,
        severity=kind.severity,
        where=str(location),
        node=_node_label(location),
        problem=problem,
        cost=kind.cost,
        rule=rule,
        rule_text=rule_text,
        fix=fix or kind.fix,
        page=kind.page,
    )


def _node_label(location: Edge | str) -> str:
    if isinstance(location, Edge):
        return qualified_name(location.graph, location.node)
    return location
