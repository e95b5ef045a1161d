"""Findings: where a quantized model differs from what the rules ask, and what TensorRT would refuse in it.

The model is stripped and planned with the same rules; there is no second implementation of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import msgspec
import numpy as np

from qdq.errors import ModelError, UsageError
from qdq.index import GraphIndex
from qdq.loading import ModelLike
from qdq.pairs import dangling
from qdq.planning import NO_RULE, Placement, Plan, plan_index
from qdq.profiles import Profile, parse_profile
from qdq.quantized import QuantizedEdge, QuantizedModel, largest
from qdq.quantizer import ELEMENT_TYPES, INT8, ElementType
from qdq.rewriting import LEAVE_FLOAT_KEY, RULES_KEY, SHAPES_KEY, TARGETS_KEY
from qdq.rule import RuleSet
from qdq.rulefile import DEFAULT_SET, load_rules, shipped_sets
from qdq.target import Target, parse_target

_IMPORTER = "onnx-tensorrt's importer (QuantDequantLinearHelper) refuses or misreads it"


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong with a model, and what to do about it."""

    code: str
    #: The edge, or the node for a Q or DQ that is no pair.
    where: str
    problem: str
    #: The rule that asks otherwise, or "" for what every TensorRT refuses.
    rule: str
    says: str
    fix: str

    def __str__(self) -> str:
        by = f" [{self.rule}]" if self.rule else ""
        return f"{self.code}: {self.where}: {self.problem}{by}; {self.fix}"


def check(model: ModelLike, *, rules: RuleSet | None = None, targets: Iterable[Target] = (), leave_float: Iterable[str] | None = None) -> tuple[Finding, ...]:
    """Return what is wrong with a model's Q/DQ, nothing for a model that is as the rules want it.

    Rules, targets and globs that are not given are those that qdq wrote into the model, else the
    defaults.
    """
    quantized = QuantizedModel(model)
    written = {p.key: p.value for p in quantized.source.model.metadata_props}
    wanted = plan_index(
        quantized.index,
        rules or load_rules(_written_sets(written)),
        tuple(targets) or _written_targets(written, quantized),
        tuple(leave_float if leave_float is not None else filter(None, written.get(LEAVE_FLOAT_KEY, "").split("\n"))),
        allow_unmatched=True,
        profiles=_written_profiles(written, quantized),
    )
    return tuple(_findings(quantized, wanted, rules))


def _written_targets(written: dict[str, str], quantized: QuantizedModel) -> tuple[Target, ...]:
    try:
        return tuple(parse_target(t) for t in written.get(TARGETS_KEY, "").split())
    except UsageError as error:
        raise ModelError(f"{quantized.source.name}: its metadata {TARGETS_KEY!r} names an {error}; pass --target") from error


def _written_profiles(written: dict[str, str], quantized: QuantizedModel) -> tuple[Profile, ...]:
    try:
        return tuple(parse_profile(text) for text in filter(None, written.get(SHAPES_KEY, "").split("\n")))
    except UsageError as error:
        raise ModelError(f"{quantized.source.name}: its metadata {SHAPES_KEY!r} holds {error}; remove it") from error


def _written_sets(written: dict[str, str]) -> tuple[str, ...]:
    named = tuple(n for n in written.get(RULES_KEY, "").split("\n") if n in shipped_sets())
    return named or (DEFAULT_SET,)


def _findings(quantized: QuantizedModel, wanted: Plan, rules: RuleSet | None) -> Iterator[Finding]:
    says = {r.name: r.says for r in (rules or load_rules()).rules}
    for name in dangling(quantized.source.model.graph):
        yield Finding("no-pair", name, "a QuantizeLinear or DequantizeLinear without its other half", "", "", "remove it, or complete the pair")
    planned = {p.edge: p.quantizer.element for p in wanted.placements}
    for found in quantized.edges:
        yield from _format_findings(found, quantized, planned.get(found.edge))
    yield from _placement_findings(quantized, wanted, says)
    yield from _group_findings(quantized, wanted)


def _format_findings(found: QuantizedEdge, quantized: QuantizedModel, planned: ElementType | None) -> Iterator[Finding]:
    """Yield what TensorRT's parser refuses or reads differently from ONNX, on one quantized edge."""
    where, pair, scales, zeros = str(found.edge), found.pair, found.scales, found.zero_points
    wanted = planned.name if planned else INT8

    def finding(code: str, problem: str, fix: str) -> Finding:
        return Finding(code, where, problem, "", _IMPORTER, fix)

    if scales is None:
        yield finding("scale-not-constant", f"its scale {pair.scale!r} is computed; TensorRT wants it at build time", "store it as an initializer")
    elif not (scales > 0).all():
        yield finding("scale-not-positive", f"its scale {pair.scale!r} is not above 0 everywhere", "calibrate again")
    elif scales.size > 1 and not quantized.index.scope(found.edge).is_constant(found.edge.tensor):
        yield finding("channel-scales", "a computed tensor has one scale per channel; TensorRT then runs in float", "give it one scale")
    if not pair.zero_point:
        yield finding("no-zero-point", "no zero point: ONNX reads that as uint8, TensorRT as int8", f"add a zero point of 0 of type {wanted}")
    elif zeros is not None and np.any(zeros):
        yield finding("zero-point", "its zero point is not 0; TensorRT quantizes symmetrically only", "quantize it again symmetrically")
    elif found.dtype and found.dtype not in ELEMENT_TYPES:
        yield finding("element-type", f"is quantized to {found.dtype}; TensorRT reads that as int8 or refuses it", f"quantize it to {wanted}")
    elif found.dtype and planned and found.dtype != planned.name:
        yield finding("element-type", f"is quantized to {found.dtype}; the rules ask for {wanted}", "quantize the float model again with qdq")


def _placement_findings(quantized: QuantizedModel, wanted: Plan, says: dict[str, str]) -> Iterator[Finding]:
    found = {q.edge: q for q in quantized.edges}
    planned = {p.edge: p for p in wanted.placements}
    left = {item.edge: item for item in wanted.left_float}
    for edge, placement in planned.items():
        rule = placement.because[0]
        if edge not in found:
            yield Finding("missing-pair", str(edge), "has no Q/DQ pair", rule, says.get(rule, ""), "quantize the float model again with qdq")
        elif (axis := _axis_of(found[edge], quantized.index.scope(edge))) != placement.quantizer.axis and not _one_channel(
            found[edge], placement, quantized.index.scope(edge)
        ):
            problem = f"is quantized {_spelled(axis)}, not {_spelled(placement.quantizer.axis)}"
            yield Finding("wrong-axis", str(edge), problem, rule, says.get(rule, ""), "quantize the float model again with qdq")
    for edge in found:
        if edge not in planned:
            kept = left.get(edge)
            rule, why = (kept.because, says.get(kept.because, kept.why)) if kept else ("", NO_RULE)
            yield Finding("unwanted-pair", str(edge), "has a Q/DQ pair that the rules leave out", rule, why, "quantize the float model again with qdq")


def _axis_of(found: QuantizedEdge, index: GraphIndex) -> int | None:
    if found.scales is None or found.scales.ndim == 0 or (found.scales.size == 1 and found.pair.axis is None):
        return None
    axis = 1 if found.pair.axis is None else found.pair.axis
    return axis + (index.rank(found.edge.tensor) or 0) if axis < 0 else axis


def _one_channel(found: QuantizedEdge, placement: Placement, index: GraphIndex) -> bool:
    """Whether the axis cannot matter: one scale, where the plan's axis has one channel."""
    axis, shape = placement.quantizer.axis, index.shape(found.edge.tensor)
    return found.scales is not None and found.scales.size == 1 and axis is not None and shape is not None and shape[axis] == 1


def _spelled(axis: int | None) -> str:
    return "with one scale" if axis is None else f"along axis {axis}"


def _group_findings(quantized: QuantizedModel, wanted: Plan) -> Iterator[Finding]:
    by_tensor = {(q.edge.read, q.dtype): (largest(q.scales), q.edge) for q in quantized.edges}
    for group, dtype in product(wanted.scale_groups, sorted({q.dtype for q in quantized.edges})):
        members = [by_tensor[t, dtype] for t in group.tensors if (t, dtype) in by_tensor]
        least = max((scale for scale, _ in members), default=0.0) / group.ratio_at_most if group.ratio_at_most else 0.0
        members = [(scale, edge) for scale, edge in members if not scale < least]
        if len({scale for scale, _ in members}) > 1:
            names = ", ".join(f"{edge.tensor} {scale:.6g}" for scale, edge in members)
            says = "TensorRT adds a kernel that requantizes where they differ"
            yield Finding(
                "unequal-scales", str(members[0][1]), f"its group has different scales: {names}", ", ".join(group.because), says, "calibrate again with qdq"
            )
