"""A model that is quantized already -> its float model, and the ranges that its pairs say: what `quantize` keeps, completes and repairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from qdq.calibration.calibrator import KnownRanges
from qdq.calibration.scales import Scales
from qdq.errors import ModelError, UsageError
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source, canonical_bytes
from qdq.planning.decisions import Placement, Plan
from qdq.quantized.converter import find_unconverted
from qdq.quantized.graph_writer import ConvertedNode
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.pair_diff import PairDiff, diff_pairs
from qdq.quantized.symmetry import CoarserActivation, exact_weight_amax, pair_type
from qdq.quantizer import E4M3, INT8, Quantizer
from qdq.ranges.given_ranges import GivenRanges, GivenSummary, match_given_ranges
from qdq.ranges.model_ranges import find_coarser_activations, read_pair_ranges, scale_axis

#: What becomes of the pairs that a model has: all stay and missing ones are added, they are made what the rules want, or they go.
KEEP, REPAIR, REPLACE = "keep", "repair", "replace"
MODES = (KEEP, REPAIR, REPLACE)

#: The reason of a pair that stays because it was there.
EXISTING_RULE = "existing"


class RescaledWeight(msgspec.Struct, frozen=True):
    """A weight whose scales could not be kept."""

    tensor: str
    reason: str


class Existing(msgspec.Struct, frozen=True):
    """What became of the quantization that a model had."""

    mode: str
    #: Nodes that were written in other operators first.
    converted: tuple[ConvertedNode, ...]
    #: Activations that are still quantized, in larger steps.
    coarser: tuple[CoarserActivation, ...]
    weights: tuple[RescaledWeight, ...]
    #: Planned activations that had no range, or whose steps would be larger, and were calibrated.
    calibrated: tuple[str, ...]
    changes: PairDiff


def make_float_source(found: QuantizedModel, mode: str) -> Source:
    """Return the float model of a quantized one.

    Raises ModelError for a quantized operator without a float form, and unless all pairs are replaced for those of a layout that no plan has.
    """
    name = found.original.path or found.original.name
    if left := find_unconverted(found.source.model):
        raise ModelError(
            f"{name}: node {left[0]} has no float form that qdq knows; quantize the float model it was made from"
        )
    for quantized in found.edges if mode != REPLACE else ():
        _require_known(str(name), quantized)
    digest = hashlib.sha256(canonical_bytes(found.stripped)).hexdigest()
    return Source(found.original.path, found.stripped, digest, found.original.notes)


def _require_known(name: str, found: QuantizedEdge) -> None:
    if found.scales is not None and sum(size > 1 for size in found.scales.shape) > 1:
        raise ModelError(
            f"{name}: {found.edge}: its scales go by blocks, which qdq does not plan; pass --existing replace, or leave the model as it is"
        )
    if (
        found.pair.q is not None
        and found.scales is not None
        and found.pair.zero_point
        and found.zero_points is None
    ):
        raise ModelError(
            f"{name}: {found.edge}: its zero point is computed; pass --existing replace with --data"
        )


def keep_existing_pairs(found: QuantizedModel, plan: Plan) -> Plan:
    """Return a plan with every pair that a model has, besides those that the rules want."""
    planned = {p.edge: p for p in plan.placements}
    for quantized in found.edges:
        if quantized.edge not in planned and quantized.scales is not None:
            planned[quantized.edge] = Placement(
                quantized.edge, _quantizer(found, quantized), (EXISTING_RULE,)
            )
    edges = [
        edge for scope in found.index.scopes.values() for edge in scope.edges() if edge in planned
    ]
    left = tuple(item for item in plan.left_float if item.edge not in planned)
    had = {quantized.edge.qualified_tensor for quantized in found.edges}
    groups = tuple(group for group in plan.scale_groups if not had.intersection(group.tensors))
    return msgspec.structs.replace(
        plan,
        placements=tuple(planned[edge] for edge in edges),
        left_float=left,
        scale_groups=groups,
    )


def _quantizer(found: QuantizedModel, quantized: QuantizedEdge) -> Quantizer:
    dtype = E4M3 if pair_type(quantized) == E4M3 else INT8
    prefix = "fp8" if dtype == E4M3 else "int8"
    if not found.index.scope(quantized.edge).is_constant(quantized.edge.tensor):
        return Quantizer(f"{prefix}-activation", dtype)
    axis = scale_axis(found, quantized)
    return Quantizer(f"{prefix}-weight-per-{'tensor' if axis is None else 'channel'}", dtype, axis)


def merge_own_ranges(found: QuantizedModel, given: KnownRanges | None = None) -> GivenRanges:
    """Return the ranges that a model's pairs say, with those that are given besides in the place of its own.

    Raises ModelError for pairs that INT8 would cost too much, and UsageError for observed ranges, which would leave nothing to keep.
    """
    find_coarser_activations(found)
    own = read_pair_ranges(found)
    if given is None:
        return own
    if not isinstance(given, GivenRanges):
        raise UsageError(
            f"{given.data}: observed ranges are about the float model; pass --existing replace to use them, or leave them out"
        )
    named, weights = ({item.tensor for item in items} for items in (given.by_tensor, given.weights))
    return msgspec.structs.replace(
        given,
        name=f"{given.name} and {own.name}",
        by_tensor=(*given.by_tensor, *(r for r in own.by_tensor if r.tensor not in named)),
        weights=(*given.weights, *(w for w in own.weights if w.tensor not in weights)),
    )


def has_all_ranges(index: GraphIndex, plan: Plan, given: KnownRanges) -> bool:
    """Whether every scale of a plan follows from given ranges."""
    if not isinstance(given, GivenRanges):
        return False
    taken = match_given_ranges(index, plan, given)
    weights = {
        (p.edge.qualified_tensor, p.quantizer.axis)
        for p in plan.placements
        if not p.quantizer.calibrated
    }
    return not taken.missing and not taken.bounded and weights <= taken.weight_amax.keys()


def find_rescaled_weights(
    found: QuantizedModel, plan: Plan, taken: GivenSummary
) -> Iterator[RescaledWeight]:
    """Yield the planned weights that had a pair and whose scales are chosen anew."""
    kept, had = taken.weight_amax, {q.edge: q for q in found.edges}
    for placement in plan.placements:
        edge, axis = placement.edge, placement.quantizer.axis
        if (
            not placement.quantizer.calibrated
            and (edge.qualified_tensor, axis) not in kept
            and (quantized := had.get(edge))
        ):
            if exact_weight_amax(quantized) is None:
                yield RescaledWeight(
                    edge.qualified_tensor, f"held {pair_type(quantized)} that is not symmetric"
                )
            else:
                yield RescaledWeight(
                    edge.qualified_tensor,
                    f"had scales along axis {scale_axis(found, quantized)}, not {axis}",
                )


def describe_existing(
    mode: str, found: QuantizedModel, plan: Plan, scales: Scales, result: QuantizedModel
) -> Existing:
    """Return what became of a model's quantization."""
    changes = diff_pairs(found, result)
    if mode == REPLACE or scales.given_ranges is None:
        return Existing(mode, found.converted, (), (), (), changes)
    weights, planned = (
        tuple(find_rescaled_weights(found, plan, scales.given_ranges)),
        {p.edge.qualified_tensor for p in plan.placements},
    )
    costs = tuple(cost for cost in find_coarser_activations(found) if cost.tensor in planned)
    calibrated = (
        *scales.given_ranges.missing,
        *(sorted(scales.given_ranges.bounded) if scales.samples else ()),
    )
    return Existing(mode, found.converted, costs, weights, calibrated, changes)


def require_mode(mode: str) -> None:
    """Raise UsageError for a word that is none of `MODES`."""
    if mode not in MODES:
        raise UsageError(f"existing={mode!r}: write one of {', '.join(MODES)}")
