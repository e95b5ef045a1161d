"""A model that is quantized already -> its float model, and the ranges that its pairs say: what `quantize` keeps, completes and repairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec
import numpy as np

from qdq.calibration import Given, Scales
from qdq.converting import unconverted
from qdq.errors import ModelError, UsageError
from qdq.givenranges import LARGEST, GivenRange, GivenRanges, GivenSummary, GivenWeight, settle
from qdq.index import GraphIndex
from qdq.loading import Source, canonical_bytes
from qdq.pairdiff import PairDiff, diff_pairs
from qdq.pairs import stored_tensors
from qdq.planning import Placement, Plan
from qdq.quantized import QuantizedEdge, QuantizedModel
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8, Quantizer
from qdq.respelling import Converted
from qdq.rulefile import DEFAULT_SET
from qdq.symmetric import Coarser, amax_of, coarser, type_of, weight_amax_of

#: What becomes of the pairs that a model has: all stay and missing ones are added, they are made what the rules want, or they go.
KEEP, REPAIR, REPLACE = "keep", "repair", "replace"
MODES = (KEEP, REPAIR, REPLACE)
#: The reason of a pair that stays because it was there.
EXISTING = "existing"
#: How many times as large the steps of a tensor may become: 8 bits around any zero point take 2.01 times at most, which loses one bit.
MOST_COARSER = 4.0
#: The shipped rule set of FP8.
FP8_SET = "tensorrt-fp8"
#: What the ranges that a model has itself are called.
OWN = "the model's own quantization"


class NewWeight(msgspec.Struct, frozen=True):
    """A weight whose scales could not be kept."""

    tensor: str
    why: str


class Existing(msgspec.Struct, frozen=True):
    """What became of the quantization that a model had."""

    mode: str
    #: Nodes that were written in other operators first.
    converted: tuple[Converted, ...]
    #: Activations that are still quantized, in larger steps.
    coarser: tuple[Coarser, ...]
    weights: tuple[NewWeight, ...]
    #: Planned activations that had no range, or whose steps would be larger, and were calibrated.
    calibrated: tuple[str, ...]
    changes: PairDiff


def float_source(found: QuantizedModel, mode: str) -> Source:
    """Return the float model of a quantized one.

    Raises ModelError for a quantized operator without a float form, and unless all pairs are replaced for those of a layout that no plan has.
    """
    name = found.given.path or found.given.name
    if left := unconverted(found.source.model):
        raise ModelError(f"{name}: node {left[0]} has no float form that qdq knows; quantize the float model it was made from")
    for quantized in found.edges if mode != REPLACE else ():
        _require_known(str(name), quantized)
    digest = hashlib.sha256(canonical_bytes(found.stripped)).hexdigest()
    return Source(found.given.path, found.stripped, digest, found.given.notes)


def _require_known(name: str, found: QuantizedEdge) -> None:
    if found.scales is not None and sum(size > 1 for size in found.scales.shape) > 1:
        raise ModelError(f"{name}: {found.edge}: its scales go by blocks, which qdq does not plan; pass --existing replace, or leave the model as it is")
    if found.pair.q is not None and found.scales is not None and found.pair.zero_point and found.zero_points is None:
        raise ModelError(f"{name}: {found.edge}: its zero point is computed; pass --existing replace with --data")


def ranges_in(found: QuantizedModel) -> GivenRanges:
    """Return the ranges that a model's pairs say: of activations the largest that any pair on the tensor has, of weights those of each channel.

    Weights whose integers are not symmetric are not among them, nor are activations whose scales are computed or not above 0. Of a
    tensor that symmetric INT8 costs resolution the range is a bound.
    """
    amax: dict[str, float] = {}
    bounds: set[str] = set()
    weights: dict[tuple[str, int | None], GivenWeight] = {}
    for quantized in found.edges:
        tensor, constant = quantized.edge.read, found.index.scope(quantized.edge).is_constant(quantized.edge.tensor)
        exact = weight_amax_of(quantized) if constant else None
        if exact is not None and exact.size and np.isfinite(exact).all():
            axis = _axis(found, quantized)
            weights.setdefault((tensor, axis), GivenWeight(tensor, axis, tuple(map(float, exact.reshape(-1)))))
        ranges = amax_of(quantized)
        if ranges is not None and (not constant or ranges.size == 1) and 0.0 < ranges.max(initial=0) <= LARGEST:
            amax[tensor] = max(float(ranges.max()), amax.get(tensor, 0.0))
            bounds |= {tensor} if coarser(quantized) else set()
    by_tensor = tuple(GivenRange(tensor, value, at_most=tensor in bounds) for tensor, value in amax.items())
    return GivenRanges(OWN, by_tensor, strict=False, weights=tuple(weights.values()))


def _axis(found: QuantizedModel, quantized: QuantizedEdge) -> int | None:
    """Return the axis that a pair's scales go along, counted from the front; None for one scale, unless it says that it is that of the one channel."""
    if quantized.scales is None:
        return None
    scope, scales = found.index.scope(quantized.edge), quantized.scales
    shape = scope.shape(quantized.edge.tensor) or ()
    if scales.ndim == len(shape) and scales.size > 1 < scales.ndim:
        return max(range(scales.ndim), key=scales.shape.__getitem__)
    axis = 1 if quantized.pair.axis is None else quantized.pair.axis
    axis += len(shape) if axis < 0 else 0
    told = scales.ndim == 1 and quantized.pair.axis is not None and 0 <= axis < len(shape) and shape[axis] == 1
    return axis if scales.size > 1 or told else None


def coarser_in(found: QuantizedModel) -> tuple[Coarser, ...]:
    """Return the activations that symmetric INT8 costs resolution, each once; raises ModelError where one loses more than `MOST_COARSER` allows."""
    costs: dict[str, Coarser] = {}
    for quantized in found.edges:
        if not found.index.scope(quantized.edge).is_constant(quantized.edge.tensor) and (cost := coarser(quantized)):
            costs[cost.tensor] = max(cost, costs.get(cost.tensor, cost), key=lambda c: c.times)
    for cost in costs.values():
        if cost.times > MOST_COARSER:
            raise ModelError(
                f"{found.given.path or found.given.name}: tensor {cost.tensor!r} is quantized to {cost.dtype}; INT8 of the same range has steps "
                f"{cost.times:.0f} times as large (at most {MOST_COARSER:g} are taken); pass --existing replace with --data to calibrate it for INT8"
            )
    return tuple(costs.values())


def keeping(found: QuantizedModel, plan: Plan) -> Plan:
    """Return a plan with every pair that a model has, besides those that the rules want."""
    planned = {p.edge: p for p in plan.placements}
    for quantized in found.edges:
        if quantized.edge not in planned and quantized.scales is not None:
            planned[quantized.edge] = Placement(quantized.edge, _quantizer(found, quantized), (EXISTING,))
    edges = [edge for scope in found.index.scopes.values() for edge in scope.edges() if edge in planned]
    left = tuple(item for item in plan.left_float if item.edge not in planned)
    had = {quantized.edge.read for quantized in found.edges}
    groups = tuple(group for group in plan.scale_groups if not had.intersection(group.tensors))
    return msgspec.structs.replace(plan, placements=tuple(planned[edge] for edge in edges), left_float=left, scale_groups=groups)


def _quantizer(found: QuantizedModel, quantized: QuantizedEdge) -> Quantizer:
    dtype = E4M3 if type_of(quantized) == E4M3 else INT8
    prefix = "fp8" if dtype == E4M3 else "int8"
    if not found.index.scope(quantized.edge).is_constant(quantized.edge.tensor):
        return Quantizer(f"{prefix}-activation", dtype)
    axis = _axis(found, quantized)
    return Quantizer(f"{prefix}-weight-per-{'tensor' if axis is None else 'channel'}", dtype, axis)


def own_ranges(found: QuantizedModel, given: Given | None = None) -> GivenRanges:
    """Return the ranges that a model's pairs say, with those that are given besides in the place of its own.

    Raises ModelError for pairs that INT8 would cost too much, and UsageError for observed ranges, which would leave nothing to keep.
    """
    coarser_in(found)
    own = ranges_in(found)
    if given is None:
        return own
    if not isinstance(given, GivenRanges):
        raise UsageError(f"{given.data}: observed ranges are about the float model; pass --existing replace to use them, or leave them out")
    named, weights = ({item.tensor for item in items} for items in (given.by_tensor, given.weights))
    return msgspec.structs.replace(
        given,
        name=f"{given.name} and {own.name}",
        by_tensor=(*given.by_tensor, *(r for r in own.by_tensor if r.tensor not in named)),
        weights=(*given.weights, *(w for w in own.weights if w.tensor not in weights)),
    )


def nothing_to_observe(index: GraphIndex, plan: Plan, given: Given) -> bool:
    """Whether every scale of a plan follows from given ranges."""
    if not isinstance(given, GivenRanges):
        return False
    taken = settle(index, plan, given)
    weights = {(p.edge.read, p.quantizer.axis) for p in plan.placements if not p.quantizer.calibrated}
    return not taken.missing and not taken.bounded and weights <= taken.weight_amax.keys()


def new_weights(found: QuantizedModel, plan: Plan, taken: GivenSummary) -> Iterator[NewWeight]:
    """Yield the planned weights that had a pair and whose scales are chosen anew."""
    kept, had = taken.weight_amax, {q.edge: q for q in found.edges}
    for placement in plan.placements:
        edge, axis = placement.edge, placement.quantizer.axis
        if not placement.quantizer.calibrated and (edge.read, axis) not in kept and (quantized := had.get(edge)):
            if weight_amax_of(quantized) is None:
                yield NewWeight(edge.read, f"held {type_of(quantized)} that is not symmetric")
            else:
                yield NewWeight(edge.read, f"had scales along axis {_axis(found, quantized)}, not {axis}")


def default_sets(source: Source) -> tuple[str, ...]:
    """Return the shipped rule sets for the types that a model's pairs have: those of FP8 where it has any."""
    types = {tensor.data_type for tensor in stored_tensors(source.model.graph).values()}
    return (FP8_SET,) if ELEMENT_TYPES[E4M3].code in types else (DEFAULT_SET,)


def report(mode: str, found: QuantizedModel, plan: Plan, scales: Scales, result: QuantizedModel) -> Existing:
    """Return what became of a model's quantization."""
    changes = diff_pairs(found, result)
    if mode == REPLACE or scales.given is None:
        return Existing(mode, found.converted, (), (), (), changes)
    weights, planned = tuple(new_weights(found, plan, scales.given)), {p.edge.read for p in plan.placements}
    costs = tuple(cost for cost in coarser_in(found) if cost.tensor in planned)
    calibrated = (*scales.given.missing, *(sorted(scales.given.bounded) if scales.samples else ()))
    return Existing(mode, found.converted, costs, weights, calibrated, changes)


def require_mode(mode: str) -> None:
    """Raise UsageError for a word that is none of `MODES`."""
    if mode not in MODES:
        raise UsageError(f"existing={mode!r}: write one of {', '.join(MODES)}")
