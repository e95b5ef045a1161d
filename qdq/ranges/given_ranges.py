"""Ranges that come from elsewhere than calibration, and what each of them means for a plan.

A planned tensor that is not given takes the range of the nearest given tensor that holds all of its
values, moved, picked or joined with others: what is within that tensor's range is within its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from qdq.errors import DataError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import MOVES_VALUES
from qdq.graph.patterns import can_commute_with_quantization, trace_axis_to_input
from qdq.planning.decisions import Plan
from qdq.quantizer import INT8_LEVELS

#: Operators whose result holds every value of their first input, wherever they commute with quantization.
_KEEPS_VALUES = (*MOVES_VALUES, "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Dropout")
_NAMED = 3

#: The largest amax that is taken: that of the largest float32 scale.
LARGEST_AMAX = INT8_LEVELS * float(np.finfo(np.float32).max)

#: A tensor: the path of the graph that makes it, and its name there.
_Place = tuple[str, str]


class GivenRange(msgspec.Struct, frozen=True):
    """The range of one tensor."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    #: The absolute value that maps to the largest value of the type, in the tensor's unit; 0 for a tensor of zeros.
    #: A float32 scale times 127 or 448 is exact in it, and divided again gives the same scale.
    amax: float
    #: The line that it stands on, 0 where that is not known.
    line: int = 0
    #: Whether it only bounds the range: where samples are run, the method may choose a smaller one.
    at_most: bool = False


class GivenWeightRange(msgspec.Struct, frozen=True):
    """The ranges of one weight."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    #: The axis that has one range each, None for one range.
    axis: int | None
    #: Absolute values, as in `GivenRange`.
    amax: tuple[float, ...]
    #: The line that it stands on, 0 where that is not known.
    line: int = 0


class GivenRanges(msgspec.Struct, frozen=True):
    """What a file, or a caller, says about ranges."""

    #: What it is called in reports: a file's name.
    name: str
    by_tensor: tuple[GivenRange, ...]
    #: The file, as messages name it; empty where there is none.
    path: str = ""
    #: Whether every name must be one of the graph's; the files of other tools name tensors that only those know.
    strict: bool = True
    #: The first line of a calibration cache.
    header: str = ""
    weights: tuple[GivenWeightRange, ...] = ()


class AppliedRange(msgspec.Struct, frozen=True):
    """A planned tensor whose range was given."""

    tensor: str
    amax: float
    #: The name that its range was given for, where that is another one: a tensor that holds all of its values.
    source_tensor: str = ""
    #: Whether the method may choose a smaller range.
    at_most: bool = False


class AppliedWeightRange(msgspec.Struct, frozen=True):
    """A planned weight whose ranges were given."""

    tensor: str
    #: One for each channel of the axis it is quantized along, or one.
    axis: int | None
    amax: tuple[float, ...]


class GivenSummary(msgspec.Struct, frozen=True):
    """What became of the ranges that were given."""

    name: str
    tensors: tuple[AppliedRange, ...]
    #: Names that the graph does not have.
    unknown: tuple[str, ...] = ()
    #: Tensors of the graph that the plan does not quantize, and that no planned one took its range from.
    unplanned: tuple[str, ...] = ()
    #: Planned tensors that were not given: they are calibrated, or without data constants that take their largest value.
    missing: tuple[str, ...] = ()
    weights: tuple[AppliedWeightRange, ...] = ()

    @property
    def weight_amax(self) -> dict[tuple[str, int | None], tuple[float, ...]]:
        """The given ranges of each planned weight that has some, by its name and axis."""
        return {(taken.tensor, taken.axis): taken.amax for taken in self.weights}

    @property
    def bounded(self) -> frozenset[str]:
        """The planned tensors whose given range is only a bound."""
        return frozenset(taken.tensor for taken in self.tensors if taken.at_most)

    @property
    def amax(self) -> dict[str, float]:
        """The given range of each planned tensor that has one."""
        return {taken.tensor: taken.amax for taken in self.tensors}


def given_by_hand(
    ranges: Mapping[str, float], name: str = "ranges passed to the library"
) -> GivenRanges:
    """Return the ranges in a mapping of tensors to amax; raises DataError for one that is negative or not finite."""
    for tensor, amax in ranges.items():
        require_range(amax, f"{name}: tensor {tensor!r}")
    return GivenRanges(
        name, tuple(GivenRange(tensor, float(amax)) for tensor, amax in ranges.items())
    )


def require_range(amax: float, where: str) -> None:
    """Raise DataError unless a range is a number from 0 to `LARGEST_AMAX`."""
    if not 0.0 <= amax <= LARGEST_AMAX:
        raise DataError(
            f"{where}: a range of {amax:g} cannot be used; write a finite number above 0, or 0 for a tensor that holds only zeros"
        )


def match_given_ranges(index: GraphIndex, plan: Plan, given: GivenRanges) -> GivenSummary:
    """Return which planned activations get which of the given ranges, and what is left over on both sides.

    Raises DataError for a name that the graph lacks where the ranges are strict.
    """
    places = _places(index)
    planned = {
        p.edge.qualified_tensor: (
            index.scope(p.edge).defining_scope(p.edge.tensor).path,
            p.edge.tensor,
        )
        for p in plan.placements
        if p.quantizer.calibrated
    }
    lines = {item.tensor: item.line for item in given.weights} | {
        item.tensor: item.line for item in given.by_tensor
    }
    unknown = [
        GivenRange(name, 0.0, line)
        for name, line in lines.items()
        if name not in planned and name not in places
    ]
    if unknown and given.strict:
        raise DataError(_unknown_sentence(index, given, unknown, {*places, *planned}))
    named = {r.tensor: r for r in given.by_tensor}
    at = {places[r.tensor]: r for r in given.by_tensor if r.tensor in places}
    taken: dict[str, GivenRange] = {}
    for read in sorted(planned):
        if found := named.get(read) or _nearest(index, planned[read], at):
            taken[read] = found
    used = {
        *(p.edge.qualified_tensor for p in plan.placements),
        *(r.tensor for r in taken.values()),
        *(r.tensor for r in unknown),
    }
    return GivenSummary(
        name=given.name,
        tensors=tuple(
            AppliedRange(read, r.amax, "" if r.tensor == read else r.tensor, r.at_most)
            for read, r in taken.items()
        ),
        unknown=tuple(r.tensor for r in unknown),
        unplanned=tuple(name for name in named if name not in used),
        missing=tuple(read for read in sorted(planned) if read not in taken),
        weights=tuple(_taken_weights(index, plan, given)),
    )


def _taken_weights(
    index: GraphIndex, plan: Plan, given: GivenRanges
) -> Iterator[AppliedWeightRange]:
    """Yield the planned weights that have given ranges, along the axis they are quantized along."""
    known: dict[str, list[GivenWeightRange]] = {}
    for weight in given.weights:
        known.setdefault(weight.tensor, []).append(weight)
    done: set[tuple[str, int | None]] = set()
    for placement in plan.placements if known else ():
        edge, axis = placement.edge, placement.quantizer.axis
        if not placement.quantizer.calibrated and (edge.qualified_tensor, axis) not in done:
            done.add((edge.qualified_tensor, axis))
            if amax := _weight_ranges(index.scope(edge), edge.tensor, axis, known):
                yield AppliedWeightRange(edge.qualified_tensor, axis, amax)


def _weight_ranges(
    scope: GraphIndex, tensor: str, axis: int | None, known: Mapping[str, list[GivenWeightRange]]
) -> tuple[float, ...]:
    """Return the given ranges of a constant along an axis, found at it or before operators that only move its values; nothing where there are none."""
    scope, along = scope.defining_scope(tensor), axis
    shape, at = scope.shape(tensor), tensor
    while (found := known.get(qualified_name(scope.path, at)) or known.get(at)) is None:
        maker = scope.producers.get(at)
        if (
            maker is None
            or maker.op not in MOVES_VALUES
            or (axis is not None and (along := trace_axis_to_input(scope, maker, along)) is None)
        ):
            return ()
        at = maker.inputs[0]
    if axis is None:
        return next((weight.amax for weight in found if weight.axis is None), (max(found[0].amax),))
    channels = shape[axis] if shape is not None else None
    fitting = (
        weight.amax if weight.axis is not None else weight.amax * (channels or 1)
        for weight in found
        if weight.axis in (None, along)
    )
    return next((amax for amax in fitting if len(amax) == channels), ())


def complete_without_data(index: GraphIndex, plan: Plan, found: GivenSummary) -> dict[str, float]:
    """Return the range of every planned activation from what is given, that of a constant also from its values.

    Raises DataError where that leaves one without.
    """
    edges = {p.edge.qualified_tensor: p.edge for p in plan.placements if p.quantizer.calibrated}
    constant = [
        read for read in found.missing if index.scope(edges[read]).is_constant(edges[read].tensor)
    ]
    _refuse_missing(index, found, [read for read in found.missing if read not in constant])
    amax = {
        read: float(np.abs(index.scope(edges[read]).constant(edges[read].tensor)).max(initial=0))
        for read in constant
    }
    for read, value in amax.items():
        require_range(value, f"{index.source.name}: constant {read!r}")
    return found.amax | amax


def _refuse_missing(index: GraphIndex, found: GivenSummary, missing: list[str]) -> None:
    if missing:
        names = ", ".join(map(repr, missing[:_NAMED])) + (
            f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        )
        count = f"{len(missing)} planned tensor{'s' if len(missing) > 1 else ''}"
        raise DataError(
            f"{index.source.name}: {found.name} has no range for {count}: {names}; pass --data to calibrate what it lacks, or add them"
        )


def _unknown_sentence(
    index: GraphIndex, given: GivenRanges, unknown: list[GivenRange], known: set[str]
) -> str:
    first = unknown[0]
    at = f"{given.path}:{first.line}" if first.line else given.path or given.name
    others = f" ({len(unknown) - 1} more are unknown)" if len(unknown) > 1 else ""
    return f"{at}: {index.source.name} has no tensor {first.tensor!r}{others}{did_you_mean(first.tensor, known)}; 'qdq plan' names those that get a scale"


def _places(index: GraphIndex) -> dict[str, _Place]:
    """Map every tensor's name, in a body behind the body's path, to where it is made."""
    made = {}
    for path, scope in index.scopes.items():
        for tensor in (*scope.inputs, *scope.initializers, *scope.producers):
            made[qualified_name(path, tensor)] = (path, tensor)
    return made


def _nearest(
    index: GraphIndex, place: _Place, at: Mapping[_Place, GivenRange]
) -> GivenRange | None:
    """Return the range of the nearest given tensor that holds all values of this one, itself included; None where there is none."""
    waiting, seen = deque([place]), {place}
    while waiting:
        path, tensor = waiting.popleft()
        if found := at.get((path, tensor)):
            return found
        for holder in _holders(index.scopes[path], tensor):
            if (path, holder) not in seen:
                seen.add((path, holder))
                waiting.append((path, holder))
    return None


def _holders(scope: GraphIndex, tensor: str) -> Iterator[str]:
    """Yield the tensors beside one, made from it or it from them, that hold all of its values."""
    maker = scope.producers.get(tensor)
    if (
        maker is not None
        and can_commute_with_quantization(scope, maker)
        and (maker.op == "Split" or tensor == maker.outputs[0])
    ):
        yield maker.inputs[0]
    for reader, slot in scope.consumers.get(tensor, ()):
        if _keeps(scope, reader, slot):
            yield reader.outputs[0]


def _keeps(scope: GraphIndex, reader: Node, slot: int) -> bool:
    """Whether the result of a node holds every value that it reads at a slot."""
    if reader.op == "Concat":
        return slot >= 0
    return slot == 0 and reader.op in _KEEPS_VALUES and can_commute_with_quantization(scope, reader)
