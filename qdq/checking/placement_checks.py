"""Findings about where pairs stand: the plan of the float graph against the pairs that the model has.

The rules are the plan's; what is here only names a difference by the facts that the rules go by, and leaves
out those that make none: a pair in front of an operator that commutes with quantization does for one behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from qdq.checking.finding import Finding, make_finding
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import (
    FOLDED_INTO_WEIGHTS,
    FUSED_AFTER_WEIGHTED,
    MOVES_VALUES,
    QUANTIZABLE_POOLS,
)
from qdq.graph.patterns import can_commute_with_quantization, trace_axis_to_input
from qdq.graph.residual import find_residual_slot
from qdq.planning.decisions import INCOMPLETE, NO_RULE, LeftFloat, Placement, Plan
from qdq.quantized.model import QuantizedEdge, QuantizedModel, largest_scale
from qdq.rules.rule import RuleSet

#: Scales closer than this are the same.
_SAME = 1e-3
_FOUR_BITS = ("int4", "uint4", "float4e2m1")


class Comparison(msgspec.Struct, frozen=True):
    """A quantized model against the plan of its float graph, edge by edge."""

    quantized: QuantizedModel
    wanted: Plan
    rules: RuleSet
    #: Planned edges without a pair, and pairs on edges that are not planned.
    missing: tuple[Placement, ...]
    unwanted: tuple[QuantizedEdge, ...]


def compare_pairs(quantized: QuantizedModel, wanted: Plan, rules: RuleSet) -> Comparison:
    """Return how the pairs of a model differ from a plan."""
    there, planned = {q.edge for q in quantized.edges}, {p.edge for p in wanted.placements}
    missing = tuple(p for p in wanted.placements if p.edge not in there)
    return Comparison(
        quantized,
        wanted,
        rules,
        missing,
        tuple(q for q in quantized.edges if q.edge not in planned),
    )


def check_placement(
    compared: Comparison, rescaled: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Yield the differences that make one, by their codes; `rescaled` names tensors whose pair has halves of two scales, which are told elsewhere."""
    names = _Names(compared)
    carried = _Carried(compared)
    yield from _missing(compared, names, carried, rescaled)
    yield from _unwanted(compared, names, carried, rescaled)
    yield from _axes(compared, names)


class _Names:
    """What the rules of a plan say, and what they are about."""

    def __init__(self, compared: Comparison) -> None:
        self._rules = {rule.name: rule for rule in compared.rules.rules}
        self._left = {item.edge: item for item in compared.wanted.left_float}

    def says(self, rule: str) -> str:
        return self._rules[rule].says if rule in self._rules else ""

    def left(self, edge: Edge) -> LeftFloat | None:
        """Return why an edge stays in float, None where no rule speaks of it."""
        return self._left.get(edge)

    def left_by(self, edge: Edge, into: str = "", from_: str = "") -> bool:
        """Whether the rule that leaves an edge in float is about nodes that a fact names."""
        kept = self._left.get(edge)
        where = (
            self._rules[kept.because].where
            if kept is not None and kept.because in self._rules
            else None
        )
        return where is not None and (into in where.into or from_ in where.from_)


class _Carried:
    """Pairs that stand elsewhere than planned and do the same.

    TensorRT moves a DQ forward past an operator that commutes with quantization, and past a Concat whose inputs have one
    scale: built with TensorRT-RTX 1.7.1, Conv and MatMul run in INT8 behind each of `can_commute_with_quantization` but Resize.
    """

    def __init__(self, compared: Comparison) -> None:
        self.found = {q.edge: q for q in compared.quantized.edges}
        self.index = compared.quantized.index
        #: Pairs that stand for planned ones.
        self.used: set[Edge] = set()
        #: Planned edges that have no pair and need none.
        self.done: dict[Edge, QuantizedEdge] = {}
        #: Concat edges whose scales differ, so that nothing is moved past them.
        self.apart: dict[Edge, tuple[QuantizedEdge, ...]] = {}
        for placement in compared.missing:
            scope = self.index.scope(placement.edge)
            if carriers := self._behind(
                scope, placement.edge.tensor, placement.quantizer.axis, placement.edge
            ):
                self.used.update(q.edge for q in carriers)
                self.done[placement.edge] = carriers[0]
        #: Edges whose pairs do their work, or whose scales are told where they are joined.
        self.told = self.used | {pair.edge for pairs in self.apart.values() for pair in pairs}

    def _behind(
        self, scope: GraphIndex, tensor: str, axis: int | None, planned: Edge
    ) -> tuple[QuantizedEdge, ...]:
        """Return the pairs whose DQ reaches a tensor through operators that commute, none where it does not."""
        maker = scope.producers.get(tensor)
        if maker is None:
            return ()
        if maker.op == "Concat" and axis is None:
            return self._joined(scope, maker, planned)
        if (
            maker.op == "Resize"
            or not can_commute_with_quantization(scope, maker)
            or (axis is not None and maker.op not in MOVES_VALUES)
        ):
            return ()
        before = None if axis is None else trace_axis_to_input(scope, maker, axis)
        if axis is not None and before is None:
            return ()
        pair = self.found.get(scope.edge(maker, 0))
        if pair is not None:
            return (pair,) if pair_scale_axis(pair, scope) == before or _single(pair) else ()
        return self._behind(scope, maker.inputs[0], before, planned)

    def _joined(self, scope: GraphIndex, concat: Node, planned: Edge) -> tuple[QuantizedEdge, ...]:
        edges = [edge for edge in scope.edges_into(concat) if edge.tensor]
        parts = [
            (self.found[e],) if e in self.found else self._behind(scope, e.tensor, None, planned)
            for e in edges
        ]
        if not all(parts):
            return ()
        pairs = tuple(pair for part in parts for pair in part)
        if not _same_scales(pairs):
            self.apart[planned] = pairs
            return ()
        return pairs

    def redundant(self, pair: QuantizedEdge) -> tuple[QuantizedEdge, ...]:
        """Return the pairs that stand behind a pair, where only operators that commute or join lie between and every way ends in one; else none."""
        scope, node = self.index.scope(pair.edge), self.index.node(pair.edge)
        if not (can_commute_with_quantization(scope, node) or node.op == "Concat") or (
            pair.edge.slot and node.op != "Concat"
        ):
            return ()
        ends: list[QuantizedEdge] = []
        waiting, seen = [name for name in node.outputs if name], set[str]()
        while waiting:
            tensor = waiting.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            if tensor in scope.outputs or any(
                slot < 0 for _, slot in scope.consumers.get(tensor, ())
            ):
                return ()
            for edge in scope.edges_from(tensor):
                reader = scope.node(edge)
                if edge in self.found:
                    ends.append(self.found[edge])
                elif edge in self.done or reader.op == "Shape":
                    continue
                elif (
                    can_commute_with_quantization(scope, reader) and not edge.slot
                ) or reader.op == "Concat":
                    waiting.extend(name for name in reader.outputs if name)
                else:
                    return ()
        return tuple(ends)


def _missing(
    compared: Comparison, names: _Names, carried: _Carried, rescaled: frozenset[str]
) -> Iterator[Finding]:
    """Yield planned edges without a pair: a weighted operator once, others one by one."""
    index, told = compared.quantized.index, set[tuple[str, str]]()
    missing = {
        p.edge: p
        for p in compared.missing
        if p.edge not in carried.done and p.edge.tensor not in rescaled
    }
    for edge, placement in missing.items():
        scope, rule = index.scope(edge), placement.because[0]
        node, both = scope.node(edge), operands(scope, scope.node(edge))
        if edge in both:
            if (edge.graph, edge.node) in told:
                continue
            told.add((edge.graph, edge.node))
        code, problem = _missing_code(scope, edge, both, missing)
        if edge in both and any(
            _only_weights(carried.found[other]) for other in both if other in carried.found
        ):
            continue
        if edge in carried.apart:
            yield _unequal(
                edge,
                carried.apart[edge],
                rule,
                f"is joined from different scales, and the {node.op} behind runs in float",
            )
        else:
            yield make_finding(code, edge, problem, rule, names.says(rule))


def _only_weights(pair: QuantizedEdge) -> bool:
    """Whether a pair is of the kinds that are for weights alone, with activations in float: 4 bits, or scales by blocks."""
    return bool(pair.pair.block_size) or (pair.dtype or pair.stored) in _FOUR_BITS


def _missing_code(
    scope: GraphIndex, edge: Edge, both: tuple[Edge, ...], missing: dict[Edge, Placement]
) -> tuple[str, str]:
    node = scope.node(edge)
    if edge in both:
        if all(operand in missing for operand in both):
            return "missing-pair", f"has no Q/DQ pair, nor has any operand of this {node.op}"
        other = next(operand for operand in both if operand not in missing)
        return (
            "half-quantized",
            f"has no Q/DQ pair, but {other.tensor!r} has: the {node.op} runs in float",
        )
    if find_residual_slot(scope, node) == edge.slot:
        return "residual-in-float", "skips into the residual Add without a Q/DQ pair"
    if node.op in QUANTIZABLE_POOLS:
        return "pool-in-float", f"is read by the {node.op} without a Q/DQ pair"
    return "missing-pair", "has no Q/DQ pair"


def _unwanted(
    compared: Comparison, names: _Names, carried: _Carried, rescaled: frozenset[str]
) -> Iterator[Finding]:
    """Yield pairs on edges that are not planned, but for those that do the same as planned ones and those that cost nothing."""
    for pair in compared.unwanted:
        scope, node = (
            compared.quantized.index.scope(pair.edge),
            compared.quantized.index.node(pair.edge),
        )
        if (
            pair.edge in carried.told
            or rescaled.intersection(node.outputs)
            or pair.stored == "int32"
            or pair.dtype == "int32"
        ):
            continue
        if ends := carried.redundant(pair):
            if not _same_scales((pair, *ends)):
                yield _unequal(
                    pair.edge, (pair, *ends), "", f"another scale stands behind this {node.op}"
                )
            continue
        kept = names.left(pair.edge)
        rule, says = (
            (kept.because, names.says(kept.because) or kept.reason) if kept else ("", NO_RULE)
        )
        code, problem = _unwanted_code(scope, pair.edge, names)
        yield make_finding(code, pair.edge, problem, rule, says)


def _unwanted_code(scope: GraphIndex, edge: Edge, names: _Names) -> tuple[str, str]:
    node, both = scope.node(edge), operands(scope, scope.node(edge))
    kept = names.left(edge)
    if names.left_by(edge, into="lacks-int8-kernel"):
        return "no-kernel", f"has a Q/DQ pair, and the {node.op} no INT8 kernel on the target"
    if (
        kept is not None
        and kept.because == INCOMPLETE
        and any(names.left_by(other, into="lacks-int8-kernel") for other in both)
    ):
        return "no-kernel", f"has a Q/DQ pair, and the {node.op} no INT8 kernel on the target"
    if weighted := _fused_behind(scope, edge.tensor):
        if node.op in FUSED_AFTER_WEIGHTED or _folds(scope, edge):
            return (
                "pair-in-fusion",
                f"has a Q/DQ pair between {weighted} and the {node.op} that TensorRT fuses with it",
            )
        return "pair-on-output", f"has a Q/DQ pair on the output of {weighted}"
    if names.left_by(edge, from_="weighted"):
        return "pair-on-output", "has a Q/DQ pair on the output of a weighted layer"
    return "unwanted-pair", "has a Q/DQ pair that the rules leave out"


def _folds(scope: GraphIndex, edge: Edge) -> bool:
    """Whether an edge goes into an Add or Mul of a constant, as of a bias."""
    node = scope.node(edge)
    return (
        node.op in FOLDED_INTO_WEIGHTS
        and len([i for i in node.inputs if i and not scope.is_constant(i)]) == 1
    )


def _fused_behind(scope: GraphIndex, tensor: str) -> str:
    """Return what makes a tensor: a weighted operator with nothing but folded ones behind it, or a residual Add that TensorRT fuses with one."""
    maker = scope.producers.get(tensor)
    while (
        maker is not None
        and maker.op in FOLDED_INTO_WEIGHTS
        and len(computed := [i for i in maker.inputs if i and not scope.is_constant(i)]) == 1
    ):
        maker = scope.producers.get(computed[0])
    if maker is None:
        return ""
    if operands(scope, maker):
        return f"the {maker.op} {maker.label!r}"
    return (
        f"the residual Add {maker.label!r}" if find_residual_slot(scope, maker) is not None else ""
    )


def _axes(compared: Comparison, names: _Names) -> Iterator[Finding]:
    """Yield pairs along another axis than planned; weights of one scale all in one finding."""
    there = {q.edge: q for q in compared.quantized.edges}
    coarse: list[Edge] = []
    for placement in compared.wanted.placements:
        pair = there.get(placement.edge)
        if pair is None or pair.pair.block_size:
            continue
        scope, rule = compared.quantized.index.scope(placement.edge), placement.because[0]
        axis = pair_scale_axis(pair, scope)
        if axis == placement.quantizer.axis or _one_channel(pair, placement, scope):
            continue
        if _single(pair):
            coarse.append(placement.edge)
        elif scope.is_constant(placement.edge.tensor):
            problem = f"is quantized {_spelled(axis)}, not {_spelled(placement.quantizer.axis)}"
            yield make_finding("wrong-axis", placement.edge, problem, rule, names.says(rule))
        else:
            yield make_finding(
                "channel-scales",
                placement.edge,
                "is computed, and has one scale for each channel",
                rule,
                names.says(rule),
            )
    if coarse:
        more = f", and so have {len(coarse) - 1} more weights" if len(coarse) > 1 else ""
        yield make_finding(
            "weight-per-tensor", coarse[0], f"has one scale for all its channels{more}"
        )


def pair_scale_axis(pair: QuantizedEdge, scope: GraphIndex) -> int | None:
    """Return the axis along which a pair has scales, None for one scale."""
    if (
        pair.scales is None
        or pair.scales.ndim == 0
        or (pair.scales.size == 1 and pair.pair.axis is None)
    ):
        return None
    axis = 1 if pair.pair.axis is None else pair.pair.axis
    return axis + (scope.rank(pair.edge.tensor) or 0) if axis < 0 else axis


def _single(pair: QuantizedEdge) -> bool:
    return pair.scales is not None and pair.scales.size == 1


def _one_channel(pair: QuantizedEdge, placement: Placement, scope: GraphIndex) -> bool:
    """Whether the axis cannot matter: one scale, where the plan's axis has one channel or it has none."""
    axis, shape = placement.quantizer.axis, scope.shape(pair.edge.tensor)
    return _single(pair) and (axis is None or (shape is not None and shape[axis] == 1))


def _spelled(axis: int | None) -> str:
    return "with one scale" if axis is None else f"along axis {axis}"


def check_scale_groups(compared: Comparison) -> Iterator[Finding]:
    """Yield the groups of tensors that the rules tie to one scale and that have several."""
    by_tensor = {(q.edge.qualified_tensor, q.dtype): q for q in compared.quantized.edges}
    for group in compared.wanted.scale_groups:
        for dtype in sorted({q.dtype for q in compared.quantized.edges}):
            members = [by_tensor[t, dtype] for t in group.tensors if (t, dtype) in by_tensor]
            least = (
                max((largest_scale(m.scales) for m in members), default=0.0) / group.ratio_at_most
                if group.ratio_at_most
                else 0.0
            )
            members = [m for m in members if not largest_scale(m.scales) < least]
            if len(members) > 1 and not _same_scales(members):
                yield _unequal(
                    members[0].edge,
                    members,
                    ", ".join(group.because),
                    "its group has different scales",
                )


def _same_scales(pairs: Iterable[QuantizedEdge]) -> bool:
    scales = [largest_scale(pair.scales) for pair in pairs]
    return bool(np.ptp(scales) <= _SAME * max(scales)) if scales else True


def _unequal(where: Edge, pairs: Iterable[QuantizedEdge], rule: str, problem: str) -> Finding:
    each = dict.fromkeys(f"{pair.edge.tensor} {largest_scale(pair.scales):.6g}" for pair in pairs)
    return make_finding("unequal-scales", where, f"{problem}: {', '.join(each)}", rule)


def check_pair_types(compared: Comparison) -> Iterator[Finding]:
    """Yield pairs of a type that TensorRT reads, and that is not the one the rules ask for."""
    there = {q.edge: q for q in compared.quantized.edges}
    for placement in compared.wanted.placements:
        pair, wanted = there.get(placement.edge), placement.quantizer.dtype
        if (
            pair is not None
            and pair.dtype in ("int8", "float8e4m3fn", "int4", "float4e2m1")
            and pair.dtype != wanted
        ):
            rule = placement.because[0]
            yield make_finding(
                "element-type",
                placement.edge,
                f"is quantized to {pair.dtype}; the rules ask for {wanted}",
                rule,
            )
