"""The quantization that a model has already, kept, repaired or replaced by `quantize`.

A quantized model becomes its float model and the ranges of its pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec
from onnx import ModelProto

from qdq.calibration.scales import Scales
from qdq.errors import ModelError, UsageError
from qdq.graph.equalized_weights import undo_equalization
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source, canonical_bytes
from qdq.planning.block_pairs import (
    EXISTING_RULE,
    has_block_scales,
    keep_block_pairs,
    read_block_quantizer,
)
from qdq.planning.decisions import Placement, Plan, sort_placements
from qdq.quantized.converter import find_unconverted
from qdq.quantized.graph_writer import ConvertedNode
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.pair_diff import PairDiff, diff_pairs
from qdq.quantized.symmetry import CoarserActivation, exact_weight_amax, pair_type
from qdq.quantizer import E4M3, INT8, Quantizer
from qdq.ranges.given_ranges import (
    GivenRange,
    GivenRanges,
    GivenSummary,
    match_given_ranges,
)
from qdq.ranges.given_weights import GivenWeightRange, make_weight_key
from qdq.ranges.known_ranges import KnownRanges
from qdq.ranges.model_ranges import find_coarser_activations, read_pair_ranges, scale_axis

#: What happens to the pairs that a model has: all stay and missing ones are added, they are placed
#: as the rules require, or they are removed.
KEEP, REPAIR, REPLACE = "keep", "repair", "replace"
MODES = (KEEP, REPAIR, REPLACE)

_Range = TypeVar("_Range", GivenRange, GivenWeightRange)


class RescaledWeight(msgspec.Struct, frozen=True):
    """A weight of which some scales, or all, could not be kept."""

    #: The tensor, after the path of its subgraph.
    tensor: str
    #: Why the weight got new scales, as the end of a sentence about it.
    reason: str


class Existing(msgspec.Struct, frozen=True):
    """What happened to the quantization that a model had."""

    #: `keep`, `repair` or `replace`, as `--existing` states it.
    mode: str
    #: Nodes that were first written in other operators.
    converted: tuple[ConvertedNode, ...]
    #: Activations that are still quantized, with larger steps.
    coarser: tuple[CoarserActivation, ...]
    #: Weights that got new scales.
    weights: tuple[RescaledWeight, ...]
    #: Planned activations that were calibrated, because they had no range or larger steps in INT8.
    calibrated: tuple[str, ...]
    #: The difference between the pairs that the model had and those that it has now.
    changes: PairDiff


def make_float_source(quantized_model: QuantizedModel, mode: str) -> Source:
    """Return the float model of a quantized one.

    Pairs that stay have scales for equalized weights, so these stay too, with their record. Where
    the pairs are replaced, equalization is undone.
    Raises ModelError for a quantized operator that has no float form. Unless the pairs are
    replaced, raises it also for pairs that no plan can describe.
    """
    original = quantized_model.original
    name = str(original.path or original.name)
    unconverted = find_unconverted(quantized_model.source.model)
    if unconverted:
        raise ModelError(
            f"{name}: node {unconverted[0]} has no float form that qdq knows. "
            "Quantize the float model that it was made from."
        )
    if mode != REPLACE:
        for quantized_edge in quantized_model.edges:
            if read_block_quantizer(quantized_model, quantized_edge) is None:
                _require_plannable(name, quantized_edge)
    stripped = quantized_model.stripped
    if mode == REPLACE:
        stripped = ModelProto()
        stripped.CopyFrom(quantized_model.stripped)
        undo_equalization(stripped, name)
    digest = hashlib.sha256(canonical_bytes(stripped)).hexdigest()
    return Source(original.path, stripped, digest, original.notes)


def _require_plannable(name: str, quantized_edge: QuantizedEdge) -> None:
    """Raise ModelError for a pair with scales in blocks, or with a computed zero point."""
    edge, pair, scales = quantized_edge.edge, quantized_edge.pair, quantized_edge.scales
    if scales is None:
        return
    if has_block_scales(quantized_edge):
        raise ModelError(
            f"{name}: {edge}: the scales are per block, and the pair is not in INT4 with zero "
            "points 0 and whole blocks of 16, 32, 64 or 128, which qdq plans. "
            "Pass --existing replace, or keep the model as it is."
        )
    if pair.q is not None and pair.zero_point and quantized_edge.zero_points is None:
        raise ModelError(
            f"{name}: {edge}: the zero point is computed. Pass --existing replace with --data."
        )


def keep_existing_pairs(quantized_model: QuantizedModel, plan: Plan) -> Plan:
    """Return a plan with every pair that a model has, in addition to those that the rules place."""
    plan = keep_block_pairs(quantized_model, plan, None)
    placements = {placement.edge: placement for placement in plan.placements}
    existing_tensors = set()
    for quantized_edge in quantized_model.edges:
        edge = quantized_edge.edge
        existing_tensors.add(edge.qualified_tensor)
        if edge not in placements and quantized_edge.scales is not None:
            placements[edge] = make_existing_placement(quantized_model, quantized_edge)
    left_float = [item for item in plan.left_float if item.edge not in placements]
    scale_groups = [g for g in plan.scale_groups if existing_tensors.isdisjoint(g.tensors)]
    return msgspec.structs.replace(
        plan,
        placements=sort_placements(quantized_model.index, placements),
        left_float=tuple(left_float),
        scale_groups=tuple(scale_groups),
    )


def make_existing_placement(
    quantized_model: QuantizedModel, quantized_edge: QuantizedEdge
) -> Placement:
    """Return the placement of a pair that stays because the model has it."""
    quantizer = _read_quantizer(quantized_model, quantized_edge)
    return Placement(quantized_edge.edge, quantizer, (EXISTING_RULE,))


def _read_quantizer(quantized_model: QuantizedModel, quantized_edge: QuantizedEdge) -> Quantizer:
    """Return the quantizer that describes a pair of a model."""
    edge = quantized_edge.edge
    block_quantizer = read_block_quantizer(quantized_model, quantized_edge)
    if block_quantizer is not None:
        return block_quantizer
    dtype = E4M3 if pair_type(quantized_edge) == E4M3 else INT8
    prefix = "fp8" if dtype == E4M3 else "int8"
    if not quantized_model.index.scope(edge).is_constant(edge.tensor):
        return Quantizer(f"{prefix}-activation", dtype)
    axis = scale_axis(quantized_model, quantized_edge)
    granularity = "tensor" if axis is None else "channel"
    return Quantizer(f"{prefix}-weight-per-{granularity}", dtype, axis)


def merge_own_ranges(
    quantized_model: QuantizedModel, known_ranges: KnownRanges | None = None
) -> GivenRanges:
    """Return the ranges of a model's pairs, replaced by the given range where there is one.

    Raises ModelError for pairs that lose too much resolution in INT8. Raises UsageError for
    observed ranges, because they are complete and keep no range of the model.
    """
    find_coarser_activations(quantized_model)
    own_ranges = read_pair_ranges(quantized_model)
    if known_ranges is None:
        return own_ranges
    if not isinstance(known_ranges, GivenRanges):
        raise UsageError(
            f"{known_ranges.data}: these ranges were observed on the float model, and the model "
            "keeps its scales. Pass --existing replace to use them, or drop them."
        )
    return msgspec.structs.replace(
        known_ranges,
        name=f"{known_ranges.name} and {own_ranges.name}",
        by_tensor=_add_missing(known_ranges.by_tensor, own_ranges.by_tensor),
        weights=_add_missing(known_ranges.weights, own_ranges.weights),
    )


def _add_missing(ranges: tuple[_Range, ...], others: Iterable[_Range]) -> tuple[_Range, ...]:
    """Return ranges, and those of other tensors from a second source."""
    tensors = {item.tensor for item in ranges}
    return ranges + tuple(item for item in others if item.tensor not in tensors)


def has_all_ranges(index: GraphIndex, plan: Plan, known_ranges: KnownRanges) -> bool:
    """Whether every scale of a plan follows from given ranges."""
    if not isinstance(known_ranges, GivenRanges):
        return False
    summary = match_given_ranges(index, plan, known_ranges)
    if summary.missing or summary.bounded:
        return False
    weight_amax = summary.weight_amax
    for placement in plan.placements:
        if placement.quantizer.calibrated:
            continue
        if make_weight_key(placement) not in weight_amax:
            return False
    return True


def find_rescaled_weights(
    quantized_model: QuantizedModel, plan: Plan, summary: GivenSummary
) -> Iterator[RescaledWeight]:
    """Yield the planned weights that had a pair and get new scales."""
    weight_amax = summary.weight_amax
    quantized_edges = {item.edge: item for item in quantized_model.edges}
    for placement in plan.placements:
        if placement.quantizer.calibrated:
            continue
        tensor, axis = placement.edge.qualified_tensor, placement.quantizer.axis
        quantized_edge = quantized_edges.get(placement.edge)
        if quantized_edge is None:
            continue
        known_amax = weight_amax.get(make_weight_key(placement))
        if known_amax is not None:
            unit = "blocks" if placement.quantizer.block_size else "channels"
            yield from _find_rescaled_channels(tensor, known_amax, unit)
            continue
        block_size = quantized_edge.pair.block_size
        if has_block_scales(quantized_edge):
            reason = f"had scales per block of {block_size}"
        elif exact_weight_amax(quantized_edge) is None:
            reason = f"held {pair_type(quantized_edge)} that is not symmetric"
        else:
            old_axis = scale_axis(quantized_model, quantized_edge)
            reason = f"had scales along axis {old_axis}, not {axis}"
        yield RescaledWeight(tensor, reason)


def _find_rescaled_channels(
    tensor: str, amax: tuple[float, ...], unit: str
) -> Iterator[RescaledWeight]:
    """Yield a weight of which some channels or blocks, or all, had no scale above 0."""
    channels = [channel for channel, value in enumerate(amax) if value == 0.0]
    if not channels:
        return
    reason = "had no scale above 0"
    if len(amax) > 1:
        reason += f" in {len(channels)} of {len(amax)} {unit}, first in {channels[0]}"
    if len(channels) < len(amax):
        reason += f"; the other {unit} keep theirs"
    yield RescaledWeight(tensor, reason)


def describe_existing(
    mode: str,
    quantized_model: QuantizedModel,
    plan: Plan,
    scales: Scales,
    result: QuantizedModel,
) -> Existing:
    """Return a record of what happened to a model's quantization."""
    changes = diff_pairs(quantized_model, result)
    converted = quantized_model.converted
    summary = scales.given_ranges
    if mode == REPLACE or summary is None:
        return Existing(mode, converted, (), (), (), changes)
    weights = tuple(find_rescaled_weights(quantized_model, plan, summary))
    planned_tensors = {placement.edge.qualified_tensor for placement in plan.placements}
    coarser = find_coarser_activations(quantized_model)
    kept_coarser = [activation for activation in coarser if activation.tensor in planned_tensors]
    calibrated = summary.missing
    if scales.samples:
        calibrated = (*calibrated, *sorted(summary.bounded))
    return Existing(mode, converted, tuple(kept_coarser), weights, calibrated, changes)


def require_mode(mode: str) -> None:
    """Raise UsageError for a mode that is not in `MODES`."""
    if not isinstance(mode, str) or mode not in MODES:
        raise UsageError(f"existing={mode!r} is not a mode. Pass one of {', '.join(MODES)}.")
