"""The pairs of a quantized model compared with the plan of its float graph."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from qdq.checking.finding import Finding, make_finding
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Edge, GraphIndex
from qdq.planning.decisions import LeftFloat, Placement, Plan
from qdq.quantized.model import QuantizedEdge, QuantizedModel, largest_scale
from qdq.rules.rule import RuleSet

#: Scales that differ by a smaller share are equal.
_SCALE_TOLERANCE = 1e-3


class Comparison(msgspec.Struct, frozen=True):
    """A quantized model and the plan of its float graph, edge by edge."""

    quantized: QuantizedModel
    #: The float graph as compilers read it.
    view: CompilerView
    plan: Plan
    rules: RuleSet
    #: Planned edges without a pair.
    missing: tuple[Placement, ...]
    #: Pairs on edges that are not planned.
    unplanned: tuple[QuantizedEdge, ...]


def compare_pairs(quantized: QuantizedModel, plan: Plan, rules: RuleSet) -> Comparison:
    """Return the comparison of a model's pairs with a plan."""
    paired_edges = {pair.edge for pair in quantized.edges}
    planned_edges = {placement.edge for placement in plan.placements}
    return Comparison(
        quantized=quantized,
        view=CompilerView(quantized.index),
        plan=plan,
        rules=rules,
        missing=tuple(p for p in plan.placements if p.edge not in paired_edges),
        unplanned=tuple(pair for pair in quantized.edges if pair.edge not in planned_edges),
    )


class PlanReasons:
    """The rules of a plan, and the edges that they leave in float."""

    def __init__(self, comparison: Comparison) -> None:
        self._rules = {rule.name: rule for rule in comparison.rules.rules}
        self._left_float = {item.edge: item for item in comparison.plan.left_float}

    def rule_text(self, rule: str) -> str:
        """Return the sentence of a rule, "" for an unknown name."""
        return self._rules[rule].says if rule in self._rules else ""

    def left_float(self, edge: Edge) -> LeftFloat | None:
        """Return the decision that keeps an edge in float, None where no rule decides."""
        return self._left_float.get(edge)

    def is_left_for(self, edge: Edge, *, into: str = "", from_: str = "") -> bool:
        """Whether an edge stays in float by a rule about one of two node facts.

        `into` is a fact about the consuming node, `from_` one about the producing node.
        """
        decision = self._left_float.get(edge)
        if decision is None or decision.because not in self._rules:
            return False
        condition = self._rules[decision.because].where
        return into in condition.into or from_ in condition.from_


def pair_scale_axis(pair: QuantizedEdge, scope: GraphIndex) -> int | None:
    """Return the axis along which a pair has scales, None for one scale."""
    scales = pair.scales
    if scales is None or scales.ndim == 0:
        return None
    if scales.size == 1 and pair.pair.axis is None:
        return None
    axis = 1 if pair.pair.axis is None else pair.pair.axis
    if axis < 0:
        axis += scope.rank(pair.edge.tensor) or 0
    return axis


def has_one_scale(pair: QuantizedEdge) -> bool:
    """Whether a pair has a single, constant scale."""
    return pair.scales is not None and pair.scales.size == 1


def have_equal_scales(pairs: Iterable[QuantizedEdge]) -> bool:
    """Whether the largest scales of some pairs are equal."""
    scales = [largest_scale(pair.scales) for pair in pairs]
    return not scales or bool(np.ptp(scales) <= _SCALE_TOLERANCE * max(scales))


def make_unequal_finding(
    location: Edge, pairs: Iterable[QuantizedEdge], rule: str, problem: str
) -> Finding:
    """Return the finding about pairs of different scales, each named with its scale."""
    tensors: list[str] = []
    for pair in pairs:
        tensors.append(f"{pair.edge.tensor} {largest_scale(pair.scales):.6g}")
    listing = ", ".join(dict.fromkeys(tensors))
    return make_finding("unequal-scales", location, f"{problem}: {listing}", rule)
