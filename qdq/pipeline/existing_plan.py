"""The pairs of a quantized model as a plan of its float model, with their own scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from qdq.calibration.calibrator import gather_ranges
from qdq.calibration.methods import parse_method
from qdq.calibration.scale_choice import choose_scales
from qdq.errors import ModelError
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.source import Source
from qdq.observers.collection import CollectionJob
from qdq.pipeline.matching_edges import EdgeMatcher
from qdq.pipeline.requantize import make_existing_placement
from qdq.planning.block_pairs import has_block_scales, read_block_quantizer
from qdq.planning.decisions import Placement, Plan, sort_placements
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.quantized.converter import find_unconverted
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.symmetry import measure_coarsening, pair_amax, pair_type
from qdq.quantizer import E4M3, INT8
from qdq.ranges.given_ranges import GivenRange, GivenRanges
from qdq.ranges.given_weights import GivenWeightRange
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
    name = quantized_model.original.path or quantized_model.original.name
    if not quantized_model.edges:
        raise ModelError(
            f"{name}: the model holds no Q/DQ pairs. Pass a quantized model, or FLOAT alone."
        )
    index = GraphIndex(source)
    matcher = EdgeMatcher(index, quantized_model.index)
    notes = list(_describe_unconverted(quantized_model))
    placements = _find_placements(index, quantized_model, matcher, notes)
    if not placements:
        raise ModelError(
            f"{name}: none of its pairs is on an edge of {source.name} that qdq can switch. "
            "Pass the float model that it was made from, with the same names."
        )
    notes += _describe_coarser(quantized_model)
    index, plan = _make_plan(index, placements)
    known_ranges = _read_ranges(quantized_model, matcher)
    job = CollectionJob(index, plan, None, False, None)
    ranges, summary = gather_ranges(job, known_ranges=known_ranges)
    scales = choose_scales(index, plan, ranges, parse_method(_METHOD), summary)
    return ExistingPlan(CalibratedPlan(index, plan, scales, None), tuple(notes))


def _make_plan(index: GraphIndex, placements: tuple[Placement, ...]) -> tuple[GraphIndex, Plan]:
    """Return a plan of some placements, and the index at the opset that their pairs need."""
    source = index.source
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
    if raised_source is source:
        return index, plan
    plan = msgspec.structs.replace(plan, digest=raised_source.digest)
    return GraphIndex(raised_source), plan


def _describe_unconverted(quantized_model: QuantizedModel) -> Iterator[str]:
    """Yield a sentence about quantized operators that have no float form."""
    unconverted = find_unconverted(quantized_model.source.model)
    if unconverted:
        yield (
            f"{len(unconverted)} quantized operators, such as {unconverted[0]}, have no float form "
            "that qdq knows, and are not switched"
        )


def _find_placements(
    index: GraphIndex, quantized_model: QuantizedModel, matcher: EdgeMatcher, notes: list[str]
) -> tuple[Placement, ...]:
    """Return the placements of the pairs that can be switched, and note the others."""
    placements: dict[Edge, Placement] = {}
    left_out = Counter[str]()
    for quantized_edge in quantized_model.edges:
        if pair_type(quantized_edge) == _BIAS_TYPE:
            continue
        edge = matcher.find_edge(quantized_edge.edge)
        reason = _find_obstacle(quantized_model, quantized_edge)
        if edge is None:
            reason = f"on edges that {index.source.name} does not have"
        if reason:
            left_out[reason] += 1
        elif edge is not None:
            placement = make_existing_placement(quantized_model, quantized_edge)
            placements[edge] = msgspec.structs.replace(placement, edge=edge)
    for reason, count in left_out.items():
        notes.append(f"pairs that are not switched: {count} {reason}")
    return sort_placements(index, placements)


def _find_obstacle(quantized_model: QuantizedModel, quantized_edge: QuantizedEdge) -> str:
    """Return why a pair cannot be switched, as the end of a sentence; "" where it can."""
    edge, scales = quantized_edge.edge, quantized_edge.scales
    if read_block_quantizer(quantized_model, quantized_edge) is not None:
        return ""
    dtype = pair_type(quantized_edge)
    if dtype not in _SWITCHED_TYPES:
        return f"of type {dtype}"
    if scales is None:
        return "with computed scales"
    if has_block_scales(quantized_edge):
        return "with scales per block"
    if quantized_model.index.scope(edge).is_constant(edge.tensor):
        return ""
    amax = pair_amax(quantized_edge)
    is_usable = amax is not None and 0.0 < float(amax.max(initial=0)) <= LARGEST_AMAX
    return "" if is_usable else "without a usable range"


def _read_ranges(quantized_model: QuantizedModel, matcher: EdgeMatcher) -> GivenRanges:
    """Return the ranges of a model's pairs under the names of the float model's tensors."""
    names: dict[str, str] = {}
    for quantized_edge in quantized_model.edges:
        edge = matcher.find_edge(quantized_edge.edge)
        if edge is not None:
            names[quantized_edge.edge.qualified_tensor] = edge.qualified_tensor
    ranges = read_pair_ranges(quantized_model)
    by_tensor: list[GivenRange] = []
    for item in ranges.by_tensor:
        name = names.get(item.tensor, item.tensor)
        by_tensor.append(msgspec.structs.replace(item, tensor=name))
    weights: list[GivenWeightRange] = []
    for weight in ranges.weights:
        name = names.get(weight.tensor, weight.tensor)
        weights.append(msgspec.structs.replace(weight, tensor=name))
    return msgspec.structs.replace(ranges, by_tensor=tuple(by_tensor), weights=tuple(weights))


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
        count = "1 activation has" if len(ratios) == 1 else f"{len(ratios)} activations have"
        yield (
            f"{count} a zero point or another type; the groups are measured "
            f"with symmetric INT8 of the same range, whose steps are up to {largest:.1f} times as "
            "large"
        )
