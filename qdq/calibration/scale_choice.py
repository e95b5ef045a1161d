"""The scales of a plan that a method chooses from ranges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import Executor, ThreadPoolExecutor

from qdq.calibration.methods import Method
from qdq.calibration.pair_scales import DEAD_AMAX, PairScaler
from qdq.calibration.scales import OutlierTensor, PairScale, Scales
from qdq.calibration.shared_scales import Amax, share_ranges
from qdq.cores import count_cores
from qdq.errors import DataError, PlanError
from qdq.graph.aliases import find_origin
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex
from qdq.planning.decisions import Placement, Plan, group_by_pair
from qdq.quantizer import ELEMENT_TYPES, INT8, ElementType, Quantizer
from qdq.ranges.given_ranges import GivenSummary
from qdq.ranges.tensor_ranges import Part, Ranges
from qdq.stage_log import timed_stage

#: A tensor that reaches this many times its range is reported: its largest values are outliers
#: and are clipped.
OUTLIER_RATIO = 8.0

#: Threads that choose scales of weights. More of them would wait for Python's lock between the
#: passes over small weights.
_MOST_THREADS = 4


@timed_stage("choosing scales")
def choose_scales(
    index: GraphIndex,
    plan: Plan,
    ranges: Ranges,
    method: Method,
    summary: GivenSummary | None = None,
    weights: Iterable[PairScale] = (),
) -> Scales:
    """Return the scales that a method chooses from ranges.

    A given range in `summary` replaces the chosen one. Every tensor of a scale group gets the
    largest range in it. `weights` are scales of weights that are known already. Raises PlanError
    or DataError for ranges that lack a planned tensor.
    """
    if not ranges.samples:
        method = method.without_data
    threads = min(count_cores(), _MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        own_amax = _choose_amax(plan, ranges, method, summary, pool)
        amax, shared = share_ranges(plan.scale_groups, own_amax)
        scaler = PairScaler(index, ranges, amax, method, summary, weights)
        groups = group_by_pair(plan).values()
        pairs = tuple(pool.map(scaler.compute, groups, _count_readers(index, groups)))
    index.forget_constants()
    return Scales(
        plan=plan.key,
        method=str(method),
        data=ranges.data,
        samples=ranges.samples,
        by_pair=pairs,
        dead=_find_dead_tensors(ranges, summary),
        batch=ranges.batch,
        outliers=_find_outliers(ranges, amax),
        shared=shared,
        given_ranges=summary,
    )


def _count_readers(index: GraphIndex, groups: Iterable[tuple[Placement, ...]]) -> list[int]:
    """Return for each pair the number of edges with such a pair that read its tensor.

    Those that read an alias of the tensor count.
    """
    keys = []
    readers = Counter[tuple[str, str, Quantizer]]()
    for placements in groups:
        edge = placements[0].edge
        origin = find_origin(index.scope(edge), edge.tensor)
        key = (edge.graph, origin, placements[0].quantizer)
        readers[key] += len(placements)
        keys.append(key)
    return [readers[key] for key in keys]


def choose_ranges(ranges: Ranges, method: Method) -> dict[str, float]:
    """Return the INT8 range that a method chooses for each tensor that samples filled.

    Tensors of one scale group get one range. Raises DataError where parts of the samples are
    missing, or histograms that the method needs.
    """
    _require_complete(ranges, method)
    element = ELEMENT_TYPES[INT8]
    own_amax = {}
    for item in ranges.by_tensor:
        if item.seen and item.filled:
            own_amax[item.tensor, INT8] = method.amax(item, element)
    shared_amax, _ = share_ranges(ranges.groups, own_amax)
    return {tensor: amax or DEAD_AMAX for (tensor, _), amax in shared_amax.items()}


def _choose_amax(
    plan: Plan, ranges: Ranges, method: Method, summary: GivenSummary | None, pool: Executor
) -> Amax:
    """Return the range of each planned activation alone, by tensor and element type."""
    elements = {}
    for tensor, quantizer in group_by_pair(plan):
        if quantizer.calibrated:
            elements[tensor, quantizer.dtype] = quantizer.element
    given_amax = summary.amax if summary else {}
    needed = {tensor for tensor, _ in elements if tensor not in given_amax}
    _require_ranges(plan, ranges, needed, method)
    _require_filled(plan, ranges, summary)
    # A bound only replaces the chosen range where no samples were run.
    bounded = summary.bounded if summary and ranges.samples else frozenset[str]()
    bounded -= _unfilled_tensors(ranges)
    by_tensor = {item.tensor: item for item in ranges.by_tensor}

    def choose(key: tuple[str, str], element: ElementType) -> float:
        tensor, _ = key
        bound = given_amax.get(tensor, math.inf)
        if tensor in given_amax and tensor not in bounded:
            return bound
        return min(method.amax(by_tensor[tensor], element), bound)

    return dict(zip(elements, pool.map(choose, elements, elements.values()), strict=True))


def _find_dead_tensors(ranges: Ranges, summary: GivenSummary | None) -> tuple[str, ...]:
    """Return the tensors whose range is 0."""
    given_amax = summary.amax if summary else {}
    tensors = []
    for item in ranges.by_tensor:
        amax = given_amax.get(item.tensor, item.amax)
        if amax == 0.0 and (item.filled or item.tensor in given_amax):
            tensors.append(item.tensor)
    return tuple(tensors)


def _find_outliers(ranges: Ranges, amax: Amax) -> tuple[OutlierTensor, ...]:
    """Return the tensors that reach `OUTLIER_RATIO` times their range, the farthest first."""
    least_amax: dict[str, float] = {}
    for (tensor, _), value in amax.items():
        least_amax[tensor] = min(value, least_amax.get(tensor, value))
    outliers = []
    for item in ranges.by_tensor:
        clipped_at = least_amax.get(item.tensor, 0.0)
        if 0.0 < clipped_at <= item.amax / OUTLIER_RATIO:
            outlier = OutlierTensor(item.tensor, item.amax, clipped_at)
            outliers.append(outlier)
    outliers.sort(key=lambda outlier: outlier.clipped_at / outlier.amax)
    return tuple(outliers)


def _require_ranges(plan: Plan, ranges: Ranges, needed: Set[str], method: Method) -> None:
    """Raise PlanError or DataError unless ranges hold everything that a plan and a method need."""
    if ranges.model != plan.digest:
        raise PlanError(
            "the ranges were observed for another model. Observe them again with this one."
        )
    _require_complete(ranges, method)
    missing = sorted(needed - set(ranges.tensors))
    if missing:
        raise PlanError(
            f"the ranges lack {len(missing)} tensors that the plan quantizes, first "
            f"{missing[0]!r}. Observe them again with this plan."
        )
    _require_computed(plan, ranges, needed)


def _require_filled(plan: Plan, ranges: Ranges, summary: GivenSummary | None) -> None:
    """Raise DataError for an activation that no sample filled."""
    for placement in find_unfilled(plan, ranges, summary):
        edge = placement.edge
        label = qualified_name(edge.graph, edge.node)
        raise DataError(
            f"{ranges.data}: no sample fills {edge.qualified_tensor!r} with values, so it has no "
            f"range. Add data that fills it, or pass --leave-float {label!r}."
        )


def find_unfilled(plan: Plan, ranges: Ranges, summary: GivenSummary | None) -> Iterator[Placement]:
    """Yield the placements of activations that samples computed, but without any values.

    Activations with a given range are left out.
    """
    given_amax = summary.amax if summary else {}
    unfilled = _unfilled_tensors(ranges) - given_amax.keys()
    for placement in plan.placements:
        if placement.quantizer.calibrated and placement.edge.qualified_tensor in unfilled:
            yield placement


def _unfilled_tensors(ranges: Ranges) -> frozenset[str]:
    return frozenset(item.tensor for item in ranges.by_tensor if item.seen and not item.filled)


def _require_computed(plan: Plan, ranges: Ranges, needed: Set[str]) -> None:
    """Raise DataError for a needed tensor in a subgraph that no sample ran."""
    not_computed = {item.tensor for item in ranges.by_tensor if not item.seen}
    missing = not_computed & needed
    for placement in plan.placements:
        edge = placement.edge
        if edge.qualified_tensor in missing:
            raise DataError(
                f"{ranges.data}: no sample runs the subgraph {edge.graph}, so {edge.tensor!r} has "
                "no range. Add data that runs it, or keep it in float with "
                f"--leave-float '{edge.graph}/*'."
            )


def _require_complete(ranges: Ranges, method: Method) -> None:
    """Raise DataError where ranges lack parts of the samples, or histograms."""
    if ranges.missing:
        part = Part(ranges.missing[0], ranges.of)
        raise DataError(
            f"{ranges.data}: the ranges lack part {part} of the samples. Merge all parts first."
        )
    if method.needs_histogram and any(item.histogram is None for item in ranges.by_tensor):
        raise DataError(
            f"the ranges hold largest values only, which --method {method} cannot use. "
            "Observe them again for it, or pass --method max."
        )
