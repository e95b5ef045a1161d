"""Ranges -> Scales: one scale for each pair, or one for each channel of a weight."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from qdq.arrays import Array
from qdq.calibration.methods import DEFAULT_METHOD, Method, parse_method
from qdq.calibration.scales import OutlierTensor, PairScale, Scales
from qdq.calibration.shared_scales import share_ranges
from qdq.calibration.weight_scales import least_error_amax, least_shift_amax
from qdq.data.feeds import DataLike
from qdq.errors import DataError, ModelError, PlanError
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.operands import channel_amax, reshape_by_channels
from qdq.graph.source import ModelLike
from qdq.observers.collection import DEFAULT_OBSERVING, CollectionJob, Observing
from qdq.observers.distributed import collect_ranges
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.planning.plan_edits import require_model
from qdq.planning.planner import source_at_plan_opset
from qdq.quantizer import ELEMENT_TYPES, INT8
from qdq.ranges.given_ranges import (
    GivenRanges,
    GivenSummary,
    complete_without_data,
    match_given_ranges,
)
from qdq.ranges.tensor_ranges import Ranges, TensorRange
from qdq.runtime.session import Progress

#: Ranges from elsewhere: what someone says, or what was observed before.
KnownRanges: TypeAlias = GivenRanges | Ranges

#: The range given to a tensor or channel that is zero throughout: any scale would do, this one is harmless.
DEAD_AMAX = 1.0

#: A tensor that was seen to reach this many times its range is named: its largest values are outliers, and clipped.
OUTLIER_RATIO = 8.0

#: Weights whose scales are chosen side by side; more threads would only wait for Python's lock between the passes over small ones.
_AT_ONCE = 4


def calibrate(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    plan: Plan,
    data: DataLike | None,
    *,
    method: str = DEFAULT_METHOD,
    weights: str | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    observing: Observing = DEFAULT_OBSERVING,
    given: KnownRanges | None = None,
) -> Scales:
    """Return the scales of a plan, computed by running the float model over the data in ONNX Runtime.

    `method` and `weights` are as `parse_method` takes them. What is `given` takes the place of what the method finds;
    with no data at all it must have every planned activation, and weights take their largest values, or with
    ``mse`` those. Raises PlanError if the plan is another model's, DataError for data or given ranges that do not fit.
    """
    index = GraphIndex(source_at_plan_opset(load(model), plan))
    job = CollectionJob(
        index, plan, data, (way := parse_method(method, weights)).needs_histogram, batch
    )
    return compute_scales(job, way, observing, progress, given)[0]


def observe(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    plan: Plan,
    data: DataLike | None,
    *,
    method: str = DEFAULT_METHOD,
    batch: int | None = None,
    progress: Progress | None = None,
    observing: Observing = DEFAULT_OBSERVING,
) -> Ranges:
    """Return what the activations of a plan were seen to hold: all that any method needs, or for ``max`` the largest values only.

    With `observing.part` of some of the samples. `qdq.merge` joins ranges; `given` of `quantize` and `calibrate` takes them.
    """
    index = GraphIndex(source_at_plan_opset(load(model), plan))
    return observe_job(
        CollectionJob(index, plan, data, parse_method(method).needs_histogram, batch),
        observing,
        progress,
    )


def compute_scales(
    job: CollectionJob,
    method: Method,
    observing: Observing = DEFAULT_OBSERVING,
    progress: Progress | None = None,
    given: KnownRanges | None = None,
) -> tuple[Scales, Ranges]:
    """Return the scales of an indexed model's plan, and the ranges that they were chosen from: observed now or before, or given."""
    require_model(job.plan, job.index)
    found = (
        match_given_ranges(job.index, job.plan, given) if isinstance(given, GivenRanges) else None
    )
    if given is None or job.data is not None:
        if isinstance(given, Ranges):
            raise DataError(
                f"{given.data}: its ranges were observed before, and more data would count beside them; leave out one of both"
            )
        ranges = collect_ranges(job, observing, progress)
    else:
        ranges = given if isinstance(given, Ranges) else _said(job, found)
    return choose_scales(job.index, job.plan, ranges, method, found), ranges


def observe_job(
    job: CollectionJob, observing: Observing = DEFAULT_OBSERVING, progress: Progress | None = None
) -> Ranges:
    """Return what the planned activations of an indexed model were seen to hold; raises PlanError if the plan is another model's."""
    require_model(job.plan, job.index)
    return collect_ranges(job, observing, progress)


def choose_scales(
    index: GraphIndex, plan: Plan, ranges: Ranges, method: Method, found: GivenSummary | None = None
) -> Scales:
    """Return the scales that a method makes of ranges, given ones in their place; scale groups get the largest range in them."""
    if not ranges.samples:
        method = method.without_data
    by_tensor = {seen.tensor: seen for seen in ranges.by_tensor}
    observed = {
        (tensor, quantizer.dtype): quantizer.element
        for tensor, quantizer in group_by_pair(plan)
        if quantizer.calibrated
    }
    given, weights = (found.amax, found.weight_amax) if found else ({}, {})
    _require_ranges(plan, ranges, {tensor for tensor, _ in observed if tensor not in given}, method)
    chosen = found.bounded if found and ranges.samples else frozenset()
    own = {
        (tensor, dtype): given[tensor]
        if tensor in given and tensor not in chosen
        else min(method.amax(by_tensor[tensor], element), given.get(tensor, math.inf))
        for (tensor, dtype), element in observed.items()
    }
    amax, shared = share_ranges(plan.scale_groups, own)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _AT_ONCE)) as pool:
        pairs = tuple(
            pool.map(
                lambda placements: _pair_scale(
                    index, placements, by_tensor, amax, method.weights, weights
                ),
                group_by_pair(plan).values(),
            )
        )
    index.forget_constants()
    dead = tuple(
        seen.tensor for seen in ranges.by_tensor if given.get(seen.tensor, seen.amax) == 0.0
    )
    return Scales(
        plan.key,
        str(method),
        ranges.data,
        ranges.samples,
        pairs,
        dead,
        ranges.batch,
        _outliers(ranges, amax),
        shared,
        found,
    )


def choose_ranges(ranges: Ranges, method: Method) -> dict[str, float]:
    """Return the INT8 range that a method makes of each observed tensor, those that share one among them.

    Raises DataError where parts of the samples are missing, or histograms that the method needs.
    """
    _require_whole(ranges, method)
    own = {(seen.tensor, INT8): method.amax(seen, ELEMENT_TYPES[INT8]) for seen in ranges.by_tensor}
    return {
        tensor: amax or DEAD_AMAX
        for (tensor, _), amax in share_ranges(ranges.groups, own)[0].items()
    }


def _said(job: CollectionJob, found: GivenSummary | None) -> Ranges:
    """Return ranges made of given ones alone."""
    amax = complete_without_data(job.index, job.plan, found) if found else {}
    return Ranges(
        job.plan.digest, "", 0, tuple(TensorRange(tensor, value) for tensor, value in amax.items())
    )


def _require_ranges(plan: Plan, ranges: Ranges, needed: Set[str], method: Method) -> None:
    """Raise PlanError or DataError unless ranges hold all that a plan and a method need of them."""
    if ranges.model != plan.digest:
        raise PlanError(
            "the ranges were observed for another model; observe them again with this one"
        )
    _require_whole(ranges, method)
    if lacking := sorted(needed - set(ranges.tensors)):
        raise PlanError(
            f"the ranges lack {len(lacking)} tensors that the plan quantizes, {lacking[0]!r} first; observe them again with this plan"
        )
    unseen = {seen.tensor for seen in ranges.by_tensor if not seen.seen}
    for edge in (
        placement.edge
        for placement in plan.placements
        if placement.edge.qualified_tensor in unseen & needed
    ):
        hint = f"give data that does, or leave it in float: --leave-float '{edge.graph}/*'"
        raise DataError(
            f"{ranges.data}: no sample runs the body {edge.graph}, so {edge.tensor!r} has no range; {hint}"
        )


def _require_whole(ranges: Ranges, method: Method) -> None:
    if ranges.missing:
        raise DataError(
            f"{ranges.data}: part {ranges.missing[0]}/{ranges.of} of the samples is missing in the ranges; merge all parts first"
        )
    if method.needs_histogram and any(seen.histogram is None for seen in ranges.by_tensor):
        raise DataError(
            f"the ranges hold largest values only, which --method {method} cannot use; observe them again for it, or use --method max"
        )


def _outliers(ranges: Ranges, amax: Mapping[tuple[str, str], float]) -> tuple[OutlierTensor, ...]:
    """Return the tensors that reach many times their range, the farthest first."""
    least: dict[str, float] = {}
    for (tensor, _), value in amax.items():
        least[tensor] = min(value, least.get(tensor, value))
    found = [
        OutlierTensor(seen.tensor, seen.amax, least[seen.tensor])
        for seen in ranges.by_tensor
        if 0.0 < least.get(seen.tensor, 0.0) <= seen.amax / OUTLIER_RATIO
    ]
    return tuple(sorted(found, key=lambda far: far.clipped_at / far.amax))


def _pair_scale(
    index: GraphIndex,
    placements: tuple[Placement, ...],
    ranges: dict[str, TensorRange],
    amax: dict[tuple[str, str], float],
    way: str,
    given: Mapping[tuple[str, int | None], tuple[float, ...]],
) -> PairScale:
    tensor, quantizer = placements[0].edge.qualified_tensor, placements[0].quantizer
    if quantizer.calibrated:
        values = np.array([amax[tensor, quantizer.dtype]])
    elif (tensor, quantizer.axis) in given:
        values = np.array(given[tensor, quantizer.axis])
    else:
        values = _weight_amax(index, placements, ranges, way)
    values = np.where(values > 0.0, values, values.dtype.type(DEAD_AMAX))
    scales = np.maximum(
        (values / values.dtype.type(quantizer.element.largest)).astype(np.float32),
        np.finfo(np.float32).tiny,
    )
    return PairScale(tensor, quantizer, tuple(float(s) for s in scales))


def _weight_amax(
    index: GraphIndex, placements: tuple[Placement, ...], ranges: dict[str, TensorRange], way: str
) -> Array:
    """Return the amax of a weight in one of the WEIGHTS ways; where the layer's input was not observed, ``shift`` takes the largest value."""
    edge, quantizer = placements[0].edge, placements[0].quantizer
    weight, node = np.asarray(index.scope(edge).constant(edge.tensor), np.float32), index.node(edge)
    if not np.isfinite(weight).all():
        label = qualified_name(edge.graph, node.label)
        raise ModelError(
            f"{index.source.name}: weight {edge.tensor!r} holds NaN or Inf; export the model again, or pass --leave-float {label!r}"
        )
    if way == "mse":
        return least_error_amax(weight, quantizer.axis, quantizer.element)
    seen = ranges.get(qualified_name(edge.graph, node.inputs[0]))
    moments = seen.moments if seen else None
    if (
        way == "max"
        or quantizer.axis is None
        or edge.slot != 1
        or moments is None
        or len(placements) > 1
    ):
        return channel_amax(weight, quantizer.axis)
    shaped, group, mean = (
        reshape_by_channels(node, weight),
        int(node.attribute("group", 1)),
        moments.mean,
    )
    if shaped is None or shaped.shape[1] * group != mean.size:
        return channel_amax(weight, quantizer.axis)
    return least_shift_amax(shaped, mean, moments.variance, group, quantizer.element)
