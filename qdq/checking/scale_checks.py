"""Findings about the scales and types of pairs on planned edges."""

from __future__ import annotations

from collections.abc import Iterator

from qdq.checking.finding import Finding, make_finding
from qdq.checking.pair_comparison import (
    Comparison,
    PlannedPair,
    PlanReasons,
    make_unequal_finding,
)
from qdq.checking.scale_comparison import has_one_scale, have_equal_scales, pair_scale_axis
from qdq.graph.index import Edge, GraphIndex
from qdq.planning.decisions import ScaleGroup
from qdq.quantized.model import QuantizedEdge, largest_scale

#: Types that TensorRT reads as they are.
_READABLE_TYPES = ("int8", "float8e4m3fn", "int4", "float4e2m1")


def check_scale_axes(comparison: Comparison) -> Iterator[Finding]:
    """Yield the pairs with scales along another axis than planned.

    All weights with one scale share one finding.
    """
    reasons = PlanReasons(comparison)
    single_scale_edges: list[Edge] = []
    for planned_pair in comparison.planned_pairs():
        pair = planned_pair.pair
        if pair.pair.block_size:
            continue
        scope = comparison.quantized.index.scope(pair.edge)
        is_planned = pair_scale_axis(pair, scope) == planned_pair.axis
        if is_planned or _has_one_channel(planned_pair, scope):
            continue
        if has_one_scale(pair):
            single_scale_edges.append(pair.edge)
        else:
            yield _make_axis_finding(planned_pair, scope, reasons)
    if single_scale_edges:
        yield _make_per_tensor_finding(single_scale_edges)


def _has_one_channel(planned_pair: PlannedPair, scope: GraphIndex) -> bool:
    """Whether a pair has one scale where the plan has no axis, or an axis of one channel."""
    pair, axis = planned_pair.pair, planned_pair.axis
    if not has_one_scale(pair):
        return False
    shape = scope.shape(pair.edge.tensor)
    return axis is None or (shape is not None and shape[axis] == 1)


def _make_axis_finding(
    planned_pair: PlannedPair, scope: GraphIndex, reasons: PlanReasons
) -> Finding:
    """Return the finding about several scales along another axis than planned."""
    pair = planned_pair.pair
    code = "channel-scales"
    problem = "the tensor is computed, and has one scale per channel"
    if scope.is_constant(pair.edge.tensor):
        code = "wrong-axis"
        actual = _describe_axis(pair_scale_axis(pair, scope))
        planned = _describe_axis(planned_pair.axis)
        problem = f"the weight is quantized {actual}, not {planned}"
    rule = planned_pair.placement.because[0]
    return make_finding(code, pair.edge, problem, rule, reasons.rule_text(rule))


def _describe_axis(axis: int | None) -> str:
    return "with one scale" if axis is None else f"along axis {axis}"


def _make_per_tensor_finding(edges: list[Edge]) -> Finding:
    problem = "the weight has one scale for all its channels"
    more = len(edges) - 1
    if more:
        problem += f", and so have {more} more weights"
    return make_finding("weight-per-tensor", edges[0], problem)


def check_pair_types(comparison: Comparison) -> Iterator[Finding]:
    """Yield the pairs of a type that TensorRT reads, but not the one that the rules ask for."""
    for planned_pair in comparison.planned_pairs():
        placement, pair = planned_pair.placement, planned_pair.pair
        planned_type = placement.quantizer.dtype
        if pair.dtype in _READABLE_TYPES and pair.dtype != planned_type:
            problem = f"the tensor is quantized to {pair.dtype}; the rules ask for {planned_type}"
            yield make_finding("element-type", pair.edge, problem, placement.because[0])


def check_scale_groups(comparison: Comparison) -> Iterator[Finding]:
    """Yield the groups of tensors that the rules tie to one scale and that have several."""
    pairs: dict[tuple[str, str], QuantizedEdge] = {}
    for edge, carrier in comparison.carried.replaced.items():
        if len(carrier.pairs) == 1:
            pairs[edge.qualified_tensor, carrier.pairs[0].dtype] = carrier.pairs[0]
    for pair in comparison.quantized.edges:
        pairs[pair.edge.qualified_tensor, pair.dtype] = pair
    dtypes = sorted({dtype for _, dtype in pairs})
    for group in comparison.plan.scale_groups:
        for dtype in dtypes:
            keys = [(tensor, dtype) for tensor in group.tensors]
            members = _group_members(group, [pairs[key] for key in keys if key in pairs])
            if len(members) > 1 and not have_equal_scales(members):
                rules = ", ".join(group.because)
                problem = "the tensors of its group have different scales"
                yield make_unequal_finding(members[0].edge, members, rules, problem)


def _group_members(group: ScaleGroup, pairs: list[QuantizedEdge]) -> list[QuantizedEdge]:
    """Return the pairs whose scale is large enough to belong to a group."""
    least = 0.0
    if pairs and group.ratio_at_most:
        largest = max(largest_scale(pair.scales) for pair in pairs)
        least = largest / group.ratio_at_most
    return [pair for pair in pairs if not largest_scale(pair.scales) < least]
