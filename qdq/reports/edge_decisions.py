"""The decision about each edge of a network as text: from a plan, or from the pairs of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from qdq.calibration.scales import PairScale, Scales
from qdq.graph.index import Edge
from qdq.planning.decisions import Plan
from qdq.quantized.model import QuantizedModel
from qdq.quantized.pair_format import describe_pair, read_format
from qdq.quantizer import ELEMENT_TYPES, Quantizer
from qdq.rules.rule import Rule


class EdgeDecision(msgspec.Struct, frozen=True):
    """What was decided about one edge."""

    #: The type of its pair, such as ``INT8``; "" without a pair.
    type: str
    #: The format of the pair with its scales; "" without a pair.
    pair: str = ""
    #: The names of the rules, or the cause in the graph.
    because: tuple[str, ...] = ()
    #: The sentence of a decision for float.
    reason: str = ""


class RuleText(msgspec.Struct, frozen=True):
    """What a rule says, its reason, and a document about it."""

    says: str
    because: str = ""
    see: str = ""


def read_plan_decisions(plan: Plan, scales: Scales | None) -> dict[Edge, EdgeDecision]:
    """Return the decisions of a plan, with the scales of its pairs where they are known."""
    scale_texts: dict[tuple[str, Quantizer], str] = {}
    for pair_scale in scales.by_pair if scales else ():
        scale_texts[pair_scale.tensor, pair_scale.quantizer] = _describe_scales(pair_scale)
    decisions: dict[Edge, EdgeDecision] = {}
    for placement in plan.placements:
        quantizer = placement.quantizer
        scale = scale_texts.get((placement.edge.qualified_tensor, quantizer), "")
        pair = ", ".join(filter(None, (str(quantizer), scale)))
        decisions[placement.edge] = EdgeDecision(quantizer.element.label, pair, placement.because)
    for item in plan.left_float:
        because = tuple(filter(None, (item.because,)))
        decisions[item.edge] = EdgeDecision("", "", because, item.reason)
    return decisions


def read_pair_decisions(quantized: QuantizedModel) -> dict[Edge, EdgeDecision]:
    """Return the pairs of a quantized model, with the rules that are written on them."""
    decisions: dict[Edge, EdgeDecision] = {}
    for quantized_edge in (*quantized.captured_edges, *quantized.edges):
        dtype = read_format(quantized_edge).dtype
        element = ELEMENT_TYPES.get(dtype)
        label = element.label if element else dtype.upper()
        rules = tuple(filter(None, quantized_edge.pair.rules.split(", ")))
        decisions[quantized_edge.edge] = EdgeDecision(label, describe_pair(quantized_edge), rules)
    return decisions


def quote_rules(
    rules: Iterable[Rule], decisions: Mapping[Edge, EdgeDecision]
) -> dict[str, RuleText]:
    """Return the texts of the rules that decisions name."""
    names: set[str] = set()
    for decision in decisions.values():
        names.update(decision.because)
    texts: dict[str, RuleText] = {}
    for rule in rules:
        if rule.name in names:
            texts[rule.name] = RuleText(rule.says, rule.because, rule.see)
    return texts


def _describe_scales(pair_scale: PairScale) -> str:
    """Return the scales of a pair, and where its range ends."""
    scales = pair_scale.scales
    if not scales:
        return ""
    largest = pair_scale.quantizer.element.largest
    if len(scales) == 1:
        return f"scale {scales[0]:.6g}, amax {scales[0] * largest:.5g}"
    return f"{len(scales)} scales {min(scales):.6g} to {max(scales):.6g}"
