"""The INT4 pairs in blocks that a quantized model has: their formats, a plan that keeps them."""

from __future__ import annotations

import msgspec
import numpy as np

from qdq.graph.index import Edge
from qdq.graph.operands import has_whole_blocks, operands
from qdq.planning.decisions import Placement, Plan, sort_placements
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.symmetry import pair_type
from qdq.quantizer import FORMATS, INT4, Quantizer
from qdq.rules.block_facts import UNBLOCKED_WEIGHT
from qdq.rules.rule import RuleSet

#: The reason of a pair that stays because the model has it.
EXISTING_RULE = "existing"


def has_block_scales(quantized_edge: QuantizedEdge) -> bool:
    """Whether a pair has several scales along more than one axis."""
    scales = quantized_edge.scales
    return scales is not None and sum(size > 1 for size in scales.shape) > 1


def read_block_quantizer(
    quantized_model: QuantizedModel, quantized_edge: QuantizedEdge
) -> Quantizer | None:
    """Return the format of a weight's pair in INT4 blocks, None for another pair.

    None too for zero points other than 0, scales that are computed or below 0, parts of blocks, and
    sizes of blocks that no format has.
    """
    pair, scales = quantized_edge.pair, quantized_edge.scales
    name = f"int4-weight-block-{pair.block_size}"
    if name not in FORMATS or pair_type(quantized_edge) != INT4 or pair.levels:
        return None
    if scales is None or not _is_around_zero(quantized_edge):
        return None
    scope = quantized_model.index.scope(quantized_edge.edge)
    tensor = quantized_edge.edge.tensor
    shape = scope.shape(tensor)
    if shape is None or not scope.is_constant(tensor):
        return None
    axis = 1 if pair.axis is None else pair.axis
    quantizer = Quantizer(name, INT4, axis % max(len(shape), 1))
    sizes = tuple(int(size or 0) for size in shape)
    has_parts = sizes[quantizer.axis or 0] % pair.block_size
    return None if has_parts or quantizer.scale_shape(sizes) != scales.shape else quantizer


def _is_around_zero(quantized_edge: QuantizedEdge) -> bool:
    """Whether zero points are absent or 0, and scales are 0 or above."""
    scales, zero_points = quantized_edge.scales, quantized_edge.zero_points
    if quantized_edge.pair.zero_point and zero_points is None:
        return False
    has_zero_points = zero_points is not None and bool(np.any(zero_points))
    return not has_zero_points and scales is not None and bool(np.all(scales >= 0))


def keep_block_pairs(quantized_model: QuantizedModel, plan: Plan, rules: RuleSet | None) -> Plan:
    """Return a plan in which weights stay in the INT4 blocks that a model has them in.

    They stay where the rules quantize them in blocks of any size, and where a rule leaves them in
    float that is about blocks of another size; without rules everywhere. The other operand of the
    layer stays in float then, unless it has a pair.
    """
    paired_edges = {pair.edge for pair in quantized_model.edges}
    placements = {placement.edge: placement for placement in plan.placements}
    for quantized_edge in quantized_model.edges:
        edge = quantized_edge.edge
        quantizer = read_block_quantizer(quantized_model, quantized_edge)
        if quantizer is None or (
            rules and not _stays(quantized_model, edge, quantizer, plan, rules)
        ):
            continue
        planned = placements.get(edge)
        is_planned = planned is not None and planned.quantizer.block_size
        reason = planned.because if planned is not None and is_planned else (EXISTING_RULE,)
        placements[edge] = Placement(edge, quantizer, reason)
        for operand in _list_operands(quantized_model, edge):
            if operand not in paired_edges:
                placements.pop(operand, None)
    left_float = tuple(item for item in plan.left_float if item.edge not in placements)
    ordered = sort_placements(quantized_model.index, placements)
    return msgspec.structs.replace(plan, placements=ordered, left_float=left_float)


def _stays(
    quantized_model: QuantizedModel, edge: Edge, quantizer: Quantizer, plan: Plan, rules: RuleSet
) -> bool:
    """Whether rules want a weight in blocks, or leave it in float for want of blocks of theirs."""
    for placement in plan.placements:
        if placement.edge == edge:
            return placement.quantizer.block_size > 0
    scope = quantized_model.index.scope(edge)
    for item in plan.left_float:
        rule = rules.rule(item.because) if item.edge == edge else None
        if rule is not None and UNBLOCKED_WEIGHT in rule.where.edge:
            return has_whole_blocks(scope, edge, quantizer.block_size)
    return False


def _list_operands(quantized_model: QuantizedModel, edge: Edge) -> tuple[Edge, ...]:
    """Return the operands of the layer that reads an edge."""
    scope = quantized_model.index.scope(edge)
    return operands(scope, scope.node(edge))
