"""The pairs of a quantized model compared with the plan of its float graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from qdq.checking.carried_pairs import CarriedPairs
from qdq.checking.finding import Finding, make_finding
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Edge
from qdq.planning.decisions import LeftFloat, Placement, Plan
from qdq.quantized.model import QuantizedEdge, QuantizedModel, largest_scale
from qdq.rules.rule import RuleSet


class PlannedPair(msgspec.Struct, frozen=True):
    """A pair that a plan asks for."""

    placement: Placement
    pair: QuantizedEdge
    #: The planned axis of scales, as it is at the pair; None for one scale.
    axis: int | None


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
    #: Those of them that have the effect of planned pairs.
    carried: CarriedPairs

    def planned_pairs(self) -> Iterator[PlannedPair]:
        """Yield the pairs that planned edges have, or that are carried to them, each edge once."""
        pairs = {pair.edge: pair for pair in self.quantized.edges}
        known: set[Edge] = set()
        for placement in self.plan.placements:
            edge, axis = placement.edge, placement.quantizer.axis
            planned_pairs = tuple(self._carried_pairs(placement))
            if edge in pairs:
                planned_pairs = (PlannedPair(placement, pairs[edge], axis),)
            for planned_pair in planned_pairs:
                if planned_pair.pair.edge not in known:
                    known.add(planned_pair.pair.edge)
                    yield planned_pair

    def _carried_pairs(self, placement: Placement) -> Iterator[PlannedPair]:
        carrier = self.carried.replaced.get(placement.edge)
        if carrier is not None:
            for pair in carrier.pairs:
                yield PlannedPair(placement, pair, carrier.axis)


def compare_pairs(quantized: QuantizedModel, plan: Plan, rules: RuleSet) -> Comparison:
    """Return the comparison of a model's pairs with a plan."""
    paired_edges = {pair.edge for pair in quantized.edges}
    planned_edges = {placement.edge for placement in plan.placements}
    missing = tuple(p for p in plan.placements if p.edge not in paired_edges)
    return Comparison(
        quantized=quantized,
        view=CompilerView(quantized.index),
        plan=plan,
        rules=rules,
        missing=missing,
        unplanned=tuple(pair for pair in quantized.edges if pair.edge not in planned_edges),
        carried=CarriedPairs(quantized, missing),
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


def make_unequal_finding(
    location: Edge, pairs: Iterable[QuantizedEdge], rule: str, problem: str
) -> Finding:
    """Return the finding about pairs of different scales, each named with its scale."""
    tensors: list[str] = []
    for pair in pairs:
        tensors.append(f"{pair.edge.tensor} {largest_scale(pair.scales):.6g}")
    listing = ", ".join(dict.fromkeys(tensors))
    return make_finding("unequal-scales", location, f"{problem}: {listing}", rule)
