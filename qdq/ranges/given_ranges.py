"""Ranges that come from elsewhere than calibration, and which tensors of a plan they apply to.

A planned tensor without a given range takes that of the nearest tensor with one that holds all of
its values, moved, picked or joined with others: that range covers its values too. A tensor that is
joined takes the largest range of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import msgspec
import numpy as np

from qdq.arguments import require_type, to_number
from qdq.errors import DataError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.planning.decisions import Plan
from qdq.ranges.given_weights import (
    AppliedWeightRange,
    GivenWeightRange,
    WeightKey,
    find_applied_weights,
)
from qdq.ranges.range_limits import require_range, require_stated_range
from qdq.ranges.value_holders import Location, find_sources

#: How many names a message lists.
_NAMED = 3


class GivenRange(msgspec.Struct, frozen=True):
    """The range of one tensor."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    #: The absolute value that maps to the largest value of the type, in the tensor's unit; 0 for a
    #: tensor of zeros. A float32 scale times 127 or 448 is exact in it, and divided again gives the
    #: same scale.
    amax: float
    #: Its line in the file, 0 where that is not known.
    line: int = 0
    #: Whether it only bounds the range: where samples are run, the method may choose a smaller one.
    at_most: bool = False


class GivenRanges(msgspec.Struct, frozen=True):
    """The ranges that a file or a caller states."""

    #: The name in reports: a file's name.
    name: str
    by_tensor: tuple[GivenRange, ...]
    #: The file, as messages name it; empty where there is none.
    path: str = ""
    #: Whether every name must be one of the graph's. Files of other tools name tensors that only
    #: those tools know.
    strict: bool = True
    #: The first line of a calibration cache.
    header: str = ""
    weights: tuple[GivenWeightRange, ...] = ()


class AppliedRange(msgspec.Struct, frozen=True):
    """A planned tensor with a given range."""

    #: The planned tensor.
    tensor: str
    #: The largest absolute value of its range.
    amax: float
    #: The tensor that the range was given for, where that is another one: it holds all values of
    #: this one.
    source_tensor: str = ""
    #: Whether the method may choose a smaller range.
    at_most: bool = False


class GivenSummary(msgspec.Struct, frozen=True):
    """Which of the given ranges apply to a plan, and which do not."""

    #: The name of the source, such as a file name.
    name: str
    tensors: tuple[AppliedRange, ...]
    #: Names that the graph does not have.
    unknown: tuple[str, ...] = ()
    #: Tensors of the graph that the plan does not quantize and whose range no planned one takes.
    unplanned: tuple[str, ...] = ()
    #: Planned tensors without a given range. They are calibrated, or without data constants that
    #: take their largest value.
    missing: tuple[str, ...] = ()
    weights: tuple[AppliedWeightRange, ...] = ()

    @property
    def weight_amax(self) -> dict[WeightKey, tuple[float, ...]]:
        """The given ranges of each planned weight, by its name, axis and size of blocks."""
        return {weight.key: weight.amax for weight in self.weights}

    @property
    def bounded(self) -> frozenset[str]:
        """The planned tensors whose given range is only a bound."""
        return frozenset(applied.tensor for applied in self.tensors if applied.at_most)

    @property
    def amax(self) -> dict[str, float]:
        """The given range of each planned tensor."""
        return {applied.tensor: applied.amax for applied in self.tensors}


def given_by_hand(
    ranges: Mapping[str, float], name: str = "ranges passed to the library"
) -> GivenRanges:
    """Return the ranges in a mapping of tensors to amax.

    Raises DataError for an amax that is negative, not finite or too small for a scale.
    """
    require_type(ranges, Mapping, "ranges", "a mapping of tensors to amax")
    by_tensor: list[GivenRange] = []
    for tensor, amax in ranges.items():
        require_type(tensor, str, f"{name}: {tensor!r}", "the name of a tensor")
        location = f"{name}: tensor {tensor!r}"
        number = to_number(amax, location)
        require_stated_range(number, location)
        by_tensor.append(GivenRange(tensor, number))
    return GivenRanges(name, tuple(by_tensor))


def match_given_ranges(index: GraphIndex, plan: Plan, given_ranges: GivenRanges) -> GivenSummary:
    """Return which planned activations and weights get which of the given ranges.

    Raises DataError for a name that the graph lacks where the ranges are strict.
    """
    locations = _map_locations(index)
    planned = _find_planned_activations(index, plan)
    known = locations.keys() | {placement.edge.qualified_tensor for placement in plan.placements}
    unknown = _find_unknown(given_ranges, known)
    if unknown and given_ranges.strict:
        raise DataError(_describe_unknown(index, given_ranges, unknown, known))
    sources = _find_sources(index, planned, given_ranges, locations)
    applied: list[AppliedRange] = []
    missing: list[str] = []
    for tensor in sorted(planned):
        if tensor in sources:
            applied.append(_apply_range(tensor, sources[tensor]))
        else:
            missing.append(tensor)
    used = {item.source_tensor for item in applied}
    used.update(unknown)
    used.update(placement.edge.qualified_tensor for placement in plan.placements)
    names = dict.fromkeys(item.tensor for item in given_ranges.by_tensor)
    return GivenSummary(
        name=given_ranges.name,
        tensors=tuple(applied),
        unknown=tuple(unknown),
        unplanned=tuple(name for name in names if name not in used),
        missing=tuple(missing),
        weights=tuple(find_applied_weights(index, plan, given_ranges.weights)),
    )


def complete_without_data(index: GraphIndex, plan: Plan, summary: GivenSummary) -> dict[str, float]:
    """Return the range of every planned activation: a given one, or that of a constant's values.

    Raises DataError where an activation has neither.
    """
    edges = _find_activation_edges(plan)
    constants: list[str] = []
    missing: list[str] = []
    for tensor in summary.missing:
        edge = edges[tensor]
        if index.scope(edge).is_constant(edge.tensor):
            constants.append(tensor)
        else:
            missing.append(tensor)
    if missing:
        raise DataError(_describe_missing(index, summary, missing))
    amax = summary.amax
    for tensor in constants:
        edge = edges[tensor]
        values = np.abs(index.scope(edge).constant(edge.tensor))
        amax[tensor] = float(values.max(initial=0))
        require_range(amax[tensor], f"{index.source.name}: constant {tensor!r}")
    return amax


def _map_locations(index: GraphIndex) -> dict[str, Location]:
    """Map every tensor's name, in a body with the body's path, to its location."""
    locations: dict[str, Location] = {}
    for path, scope in index.scopes.items():
        for tensor in (*scope.inputs, *scope.initializers, *scope.producers):
            locations[qualified_name(path, tensor)] = (path, tensor)
    return locations


def _find_activation_edges(plan: Plan) -> dict[str, Edge]:
    """Return an edge of each activation that a plan quantizes, by the tensor's name."""
    edges: dict[str, Edge] = {}
    for placement in plan.placements:
        if placement.quantizer.calibrated:
            edges[placement.edge.qualified_tensor] = placement.edge
    return edges


def _find_planned_activations(index: GraphIndex, plan: Plan) -> dict[str, Location]:
    """Return the location of each activation that a plan quantizes, by its name."""
    planned: dict[str, Location] = {}
    for tensor, edge in _find_activation_edges(plan).items():
        scope = index.scope(edge).defining_scope(edge.tensor)
        planned[tensor] = (scope.path, edge.tensor)
    return planned


def _find_unknown(given_ranges: GivenRanges, known: Set[str]) -> dict[str, int]:
    """Return the line of each given name that the graph lacks."""
    items: list[GivenRange | GivenWeightRange] = [*given_ranges.weights, *given_ranges.by_tensor]
    unknown: dict[str, int] = {}
    for item in items:
        if item.tensor not in known:
            unknown[item.tensor] = item.line
    return unknown


def _find_sources(
    index: GraphIndex,
    planned: Mapping[str, Location],
    given_ranges: GivenRanges,
    locations: Mapping[str, Location],
) -> dict[str, GivenRange]:
    """Return the given range of each planned activation that has one, or a tensor that holds it."""
    by_name: dict[str, GivenRange] = {}
    by_location: dict[Location, GivenRange] = {}
    for item in given_ranges.by_tensor:
        by_name[item.tensor] = item
        if item.tensor in locations:
            by_location[locations[item.tensor]] = item
    sources: dict[str, GivenRange] = {}
    for tensor in sorted(planned):
        candidates = find_sources(index, planned[tensor], by_location)
        if tensor in by_name:
            candidates = (by_name[tensor],)
        if candidates:
            sources[tensor] = max(candidates, key=lambda source: source.amax)
    return sources


def _apply_range(tensor: str, source: GivenRange) -> AppliedRange:
    source_tensor = "" if source.tensor == tensor else source.tensor
    return AppliedRange(tensor, source.amax, source_tensor, source.at_most)


def _describe_missing(index: GraphIndex, summary: GivenSummary, missing: list[str]) -> str:
    names = ", ".join(map(repr, missing[:_NAMED]))
    if len(missing) > _NAMED:
        names += f" and {len(missing) - _NAMED} more"
    plural = "s" if len(missing) > 1 else ""
    return (
        f"{index.source.name}: {summary.name} has no range for {len(missing)} planned "
        f"tensor{plural}: {names}. Pass --data to calibrate what is missing, or add the ranges."
    )


def _describe_unknown(
    index: GraphIndex, given_ranges: GivenRanges, unknown: Mapping[str, int], known: Set[str]
) -> str:
    name, line = next(iter(unknown.items()))
    location = given_ranges.path or given_ranges.name
    if line:
        location = f"{given_ranges.path}:{line}"
    others = f" ({len(unknown) - 1} more are unknown)" if len(unknown) > 1 else ""
    fact = f"{location}: {index.source.name} has no tensor {name!r}{others}"
    hint = did_you_mean(name, known) or "."
    return f"{fact}{hint} 'qdq plan' lists the tensors that get a scale."
