"""The pairs of a quantized model as a plan of its float model, with their own scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from qdq.calibration.calibrator import choose_scales, gather_ranges
from qdq.calibration.methods import parse_method
from qdq.errors import ModelError
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.source import Source
from qdq.observers.collection import CollectionJob
from qdq.pipeline.pair_locations import sort_placements
from qdq.pipeline.requantize import make_existing_placement
from qdq.planning.decisions import Placement, Plan
from qdq.planning.planner import source_at_plan_opset
from qdq.quantized.converter import find_unconverted
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.symmetry import measure_coarsening, pair_amax, pair_type
from qdq.quantizer import E4M3, INT8
from qdq.ranges.model_ranges import read_pair_ranges
from qdq.ranges.range_limits import LARGEST_AMAX
from qdq.sensitivity.plan_sensitivity import CalibratedPlan
from qdq.target import DEFAULT_TARGET

#: The types whose pairs have a symmetric pair of 8 bits in their place.
_SWITCHED_TYPES = (INT8, "uint8", E4M3)

#: The type of quantized biases, which make no noise that matters.
_BIAS_TYPE = "int32"

#: The method of scales that the pairs do not state: those of weights with other zero points than 0.
_METHOD = "max"


class ExistingPlan(msgspec.Struct, frozen=True):
    """The pairs of a quantized model that can be switched in its float model."""

    calibrated: CalibratedPlan
    #: One sentence each about pairs that are left out or differ.
    notes: tuple[str, ...]


def make_existing_plan(source: Source, quantized_model: QuantizedModel) -> ExistingPlan:
    """Return the pairs of a quantized model as a plan of the float model that it was made from.

    Raises ModelError for a model without pairs, and for one none of whose pairs is on an edge of
    the float model.
    """
    index = GraphIndex(source)
    name = quantized_model.original.path or quantized_model.original.name
    unconverted = find_unconverted(quantized_model.source.model)
    notes: list[str] = []
    if unconverted:
        notes.append(
            f"{len(unconverted)} quantized operators, such as {unconverted[0]}, have no float form "
            "that qdq knows, and are not switched"
        )
    if not quantized_model.edges:
        raise ModelError(
            f"{name}: the model holds no Q/DQ pairs. Pass a quantized model, or FLOAT alone."
        )
    placements = _find_placements(index, quantized_model, notes)
    if not placements:
        raise ModelError(
            f"{name}: none of its pairs is on an edge of {source.name} that qdq can switch. "
            "Pass the float model that it was made from, with the same names."
        )
    notes += _describe_coarser(quantized_model)
    plan = Plan(
        model=source.name,
        digest=source.digest,
        notes=(),
        targets=(DEFAULT_TARGET,),
        rule_sets=(),
        leave_float=(),
        placements=placements,
        left_float=(),
        scale_groups=(),
    )
    raised_source = source_at_plan_opset(source, plan, index)
    if raised_source is not source:
        index = GraphIndex(raised_source)
        plan = msgspec.structs.replace(plan, digest=raised_source.digest)
    job = CollectionJob(index, plan, None, False, None)
    ranges, summary = gather_ranges(job, known_ranges=read_pair_ranges(quantized_model))
    scales = choose_scales(index, plan, ranges, parse_method(_METHOD), summary)
    return ExistingPlan(CalibratedPlan(index, plan, scales, None), tuple(notes))


def _find_placements(
    index: GraphIndex, quantized_model: QuantizedModel, notes: list[str]
) -> tuple[Placement, ...]:
    """Return the placements of the pairs that can be switched, and note the others."""
    placements: dict[Edge, Placement] = {}
    left_out = Counter[str]()
    for quantized_edge in quantized_model.edges:
        reason = _find_obstacle(index, quantized_edge)
        if reason:
            left_out[reason] += 1
        elif pair_type(quantized_edge) != _BIAS_TYPE:
            placement = make_existing_placement(quantized_model, quantized_edge)
            placements[quantized_edge.edge] = placement
    for reason, count in left_out.items():
        notes.append(f"pairs that are not switched: {count} {reason}")
    return sort_placements(index, placements)


def _find_obstacle(index: GraphIndex, quantized_edge: QuantizedEdge) -> str:
    """Return why a pair cannot be switched, as the end of a sentence; "" where it can."""
    dtype = pair_type(quantized_edge)
    if dtype == _BIAS_TYPE:
        return ""
    edge = quantized_edge.edge
    scope = index.scopes.get(edge.graph)
    node = scope.by_label.get(edge.node) if scope is not None else None
    if node is None or edge.tensor not in node.inputs[edge.slot : edge.slot + 1]:
        return f"on edges that {index.source.name} does not have"
    if dtype not in _SWITCHED_TYPES:
        return f"of type {dtype}"
    scales = quantized_edge.scales
    if scales is None:
        return "with computed scales"
    if sum(size > 1 for size in scales.shape) > 1:
        return "with scales per block"
    if scope is not None and scope.is_constant(edge.tensor):
        return ""
    amax = pair_amax(quantized_edge)
    is_usable = amax is not None and 0.0 < float(amax.max(initial=0)) <= LARGEST_AMAX
    return "" if is_usable else "without a usable range"


def _describe_coarser(quantized_model: QuantizedModel) -> Iterator[str]:
    """Yield a sentence about activations whose symmetric pairs have larger steps."""
    ratios: dict[str, float] = {}
    for quantized_edge in quantized_model.edges:
        cost = measure_coarsening(quantized_edge)
        scope = quantized_model.index.scope(quantized_edge.edge)
        if cost is not None and not scope.is_constant(quantized_edge.edge.tensor):
            ratios[cost.tensor] = max(cost.step_ratio, ratios.get(cost.tensor, 0.0))
    if ratios:
        largest = max(ratios.values())
        yield (
            f"{len(ratios)} activations have a zero point or another type; the groups are measured "
            f"with symmetric INT8 of the same range, whose steps are up to {largest:.1f} times as "
            "large"
        )
