"""Ranges -> Scales: one scale for each pair, or one for each channel of a weight."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import msgspec
import numpy as np

from qdq.errors import DataError, ModelError, PlanError, UsageError
from qdq.feeds import DataLike
from qdq.givenranges import GivenRanges, GivenSummary, settle, without_data
from qdq.histogram import least_error
from qdq.index import Array, GraphIndex, qualified
from qdq.loading import ModelLike, load
from qdq.observation import Progress
from qdq.observing import OBSERVING, Job, Observing
from qdq.planning import Placement, Plan, source_for
from qdq.quantizer import FORMATS, ElementType, Quantizer
from qdq.ranges import Ranges, TensorRange
from qdq.sharing import Shared, share
from qdq.spreading import observed
from qdq.weights import by_channels, channel_amax, least_error_amax, least_shift_amax

#: Ranges from elsewhere: what someone says, or what was observed before.
Given: TypeAlias = GivenRanges | Ranges

DEFAULT_METHOD = "auto"
#: In the place of a method where ranges are said, not chosen.
GIVEN = "given"
#: Share of absolute values kept within the range; the default of pytorch-quantization's HistogramCalibrator.
DEFAULT_PERCENT = 99.99
#: The range given to a tensor or channel that is zero throughout: any scale would do, this one is harmless.
DEAD_AMAX = 1.0

#: What chooses the scales of weights: the largest value of each channel, the least change of the weights, or of what their layer gives.
WEIGHTS = ("max", "mse", "shift")
#: A tensor that was seen to reach this many times its range is named: its largest values are outliers, and clipped.
OUTLIERS = 8.0

#: Weights whose scales are chosen side by side; more threads would only wait for Python's lock between the passes over small ones.
_AT_ONCE = 4

_METHOD = re.compile(r"(?P<name>auto|max|mse|percentile|entropy)(:(?P<percent>\d+(\.\d+)?))?")


class Method(msgspec.Struct, frozen=True):
    """How a range becomes an amax, and how the scales of weights are chosen."""

    #: auto, mse, entropy, percentile or max; given, where ranges are said and none is chosen.
    name: str
    percent: float | None = None
    #: One of WEIGHTS.
    weights: str = "shift"

    def __str__(self) -> str:
        name = self.name if self.percent is None else f"{self.name}:{self.percent:g}"
        return name if self.weights == _usual_weights(self.name) else f"{name}, weights {self.weights}"

    def amax(self, seen: TensorRange, element: ElementType) -> float:
        """Return the absolute value that maps to the largest value of a type, in the tensor's unit."""
        if seen.histogram is None or self.name == "max":
            return seen.amax
        if self.percent is not None:
            return seen.histogram.percentile(self.percent)
        if self.name == "auto":
            return least_error(seen.weighed, element)
        return seen.histogram.least_divergence(element) if self.name == "entropy" else seen.histogram.least_error(element)

    @property
    def needs_histogram(self) -> bool:
        """Whether the largest value alone is not enough."""
        return self.name not in ("max", GIVEN) or self.weights == "shift"

    @property
    def without_data(self) -> Method:
        """What is left of it where no data was run: TensorRT, too, takes the largest weights where it has a cache."""
        return Method(GIVEN, None, "mse" if self.weights == "mse" else "max")


class PairScale(msgspec.Struct, frozen=True):
    """The scales of one pair: one, or one for each channel along the quantizer's axis."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    quantizer: Quantizer
    scales: tuple[float, ...]


class Outliers(msgspec.Struct, frozen=True):
    """A tensor whose largest value lies far beyond the range that its method chose."""

    tensor: str
    #: The largest absolute value seen.
    amax: float
    #: What it is clipped at.
    clipped: float


class Scales(msgspec.Struct, frozen=True):
    """All scales of a plan, and what they were computed from."""

    #: `Plan.key` of the plan they belong to.
    plan: str
    method: str
    data: str
    samples: int
    by_pair: tuple[PairScale, ...]
    #: Tensors that held only zeros and got the harmless range.
    dead: tuple[str, ...] = ()
    #: How many entries one sample held, as ``8`` or ``1 to 8``; empty where that is not known.
    batch: str = ""
    #: Tensors that were seen to reach `OUTLIERS` times their range or more.
    outliers: tuple[Outliers, ...] = ()
    #: Tensors that have the range of their scale group.
    shared: tuple[Shared, ...] = ()
    #: What became of ranges that came from elsewhere; None where there were none.
    given: GivenSummary | None = None


def parse_method(text: str, weights: str | None = None) -> Method:
    """Return the method that ``auto``, ``mse``, ``entropy``, ``max``, ``percentile`` or ``percentile:99.9`` names; raises UsageError for others.

    `weights` is one of WEIGHTS; without it ``max`` takes the largest weights too, and all others ``shift``.
    """
    found = _METHOD.fullmatch(text)
    if not found or (found["name"] != "percentile" and found["percent"]):
        raise UsageError(f"unknown method {text!r}: write auto, mse, entropy, percentile, percentile:99.9 or max")
    name, way = found["name"], weights or _usual_weights(found["name"])
    if way not in WEIGHTS:
        raise UsageError(f"unknown way to choose the scales of weights {way!r}: write {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}")
    if name != "percentile":
        return Method(name, None, way)
    percent = float(found["percent"] or DEFAULT_PERCENT)
    if not 0.0 < percent <= 100.0:  # noqa: PLR2004 percent
        raise UsageError(f"method {text!r}: a percentile lies above 0 and at most at 100")
    return Method(name, percent, way)


def _usual_weights(name: str) -> str:
    return "max" if name in ("max", GIVEN) else "shift"


def calibrate(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    plan: Plan,
    data: DataLike | None,
    *,
    method: str = DEFAULT_METHOD,
    weights: str | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    observing: Observing = OBSERVING,
    given: Given | None = None,
) -> Scales:
    """Return the scales of a plan, computed by running the float model over the data in ONNX Runtime.

    `method` and `weights` are as `parse_method` takes them. What is `given` takes the place of what the method finds;
    with no data at all it must have every planned activation, and weights take their largest values, or with
    ``mse`` those. Raises PlanError if the plan is another model's, DataError for data or given ranges that do not fit.
    """
    index = GraphIndex(source_for(load(model), plan))
    job = Job(index, plan, data, (way := parse_method(method, weights)).needs_histogram, batch)
    return scales_of(job, way, observing, progress, given)[0]


def observe(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    plan: Plan,
    data: DataLike | None,
    *,
    method: str = DEFAULT_METHOD,
    batch: int | None = None,
    progress: Progress | None = None,
    observing: Observing = OBSERVING,
) -> Ranges:
    """Return what the activations of a plan were seen to hold: all that any method needs, or for ``max`` the largest values only.

    With `observing.part` of some of the samples. `qdq.merge` joins ranges; `given` of `quantize` and `calibrate` takes them.
    """
    index = GraphIndex(source_for(load(model), plan))
    return ranges_of(Job(index, plan, data, parse_method(method).needs_histogram, batch), observing, progress)


def scales_of(
    job: Job, method: Method, observing: Observing = OBSERVING, progress: Progress | None = None, given: Given | None = None
) -> tuple[Scales, Ranges]:
    """Return the scales of an indexed model's plan, and the ranges that they were chosen from: observed now or before, or given."""
    require_model(job.plan, job.index)
    found = settle(job.index, job.plan, given) if isinstance(given, GivenRanges) else None
    if given is None or job.data is not None:
        if isinstance(given, Ranges):
            raise DataError(f"{given.data}: its ranges were observed before, and more data would count beside them; leave out one of both")
        ranges = observed(job, observing, progress)
    else:
        ranges = given if isinstance(given, Ranges) else _said(job, found)
    return scales_from(job.index, job.plan, ranges, method, found), ranges


def ranges_of(job: Job, observing: Observing = OBSERVING, progress: Progress | None = None) -> Ranges:
    """Return what the planned activations of an indexed model were seen to hold; raises PlanError if the plan is another model's."""
    require_model(job.plan, job.index)
    return observed(job, observing, progress)


def scales_from(index: GraphIndex, plan: Plan, ranges: Ranges, method: Method, found: GivenSummary | None = None) -> Scales:
    """Return the scales that a method makes of ranges, given ones in their place; scale groups get the largest range in them."""
    if not ranges.samples:
        method = method.without_data
    by_tensor = {seen.tensor: seen for seen in ranges.by_tensor}
    observed = {(tensor, quantizer.dtype): quantizer.element for tensor, quantizer in pairs_of(plan) if quantizer.calibrated}
    given = found.amax if found else {}
    _require_ranges(plan, ranges, {tensor for tensor, _ in observed if tensor not in given}, method)
    own = {(tensor, dtype): given[tensor] if tensor in given else method.amax(by_tensor[tensor], element) for (tensor, dtype), element in observed.items()}
    amax, shared = share(plan, own)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _AT_ONCE)) as pool:
        pairs = tuple(pool.map(lambda placements: _pair_scale(index, placements, by_tensor, amax, method.weights), pairs_of(plan).values()))
    index.forget_constants()
    dead = tuple(seen.tensor for seen in ranges.by_tensor if given.get(seen.tensor, seen.amax) == 0.0)
    return Scales(plan.key, str(method), ranges.data, ranges.samples, pairs, dead, ranges.batch, _outliers(ranges, amax), shared, found)


def _said(job: Job, found: GivenSummary | None) -> Ranges:
    """Return ranges made of given ones alone."""
    amax = without_data(job.index, job.plan, found) if found else {}
    return Ranges(job.plan.digest, "", 0, tuple(TensorRange(tensor, value) for tensor, value in amax.items()))


def _require_ranges(plan: Plan, ranges: Ranges, needed: Set[str], method: Method) -> None:
    """Raise PlanError or DataError unless ranges hold all that a plan and a method need of them."""
    if ranges.model != plan.digest:
        raise PlanError("the ranges were observed for another model; observe them again with this one")
    if ranges.missing:
        raise DataError(f"{ranges.data}: part {ranges.missing[0]}/{ranges.of} of the samples is missing in the ranges; merge all parts first")
    if lacking := sorted(needed - set(ranges.tensors)):
        raise PlanError(f"the ranges lack {len(lacking)} tensors that the plan quantizes, {lacking[0]!r} first; observe them again with this plan")
    if method.needs_histogram and any(seen.histogram is None for seen in ranges.by_tensor):
        raise DataError(f"the ranges hold largest values only, which --method {method} cannot use; observe them again for it, or use --method max")
    unseen = {seen.tensor for seen in ranges.by_tensor if not seen.seen}
    for edge in (placement.edge for placement in plan.placements if placement.edge.read in unseen & needed):
        hint = f"give data that does, or leave it in float: --leave-float '{edge.graph}/*'"
        raise DataError(f"{ranges.data}: no sample runs the body {edge.graph}, so {edge.tensor!r} has no range; {hint}")


def _outliers(ranges: Ranges, amax: Mapping[tuple[str, str], float]) -> tuple[Outliers, ...]:
    """Return the tensors that reach many times their range, the farthest first."""
    least: dict[str, float] = {}
    for (tensor, _), value in amax.items():
        least[tensor] = min(value, least.get(tensor, value))
    found = [Outliers(seen.tensor, seen.amax, least[seen.tensor]) for seen in ranges.by_tensor if 0.0 < least.get(seen.tensor, 0.0) <= seen.amax / OUTLIERS]
    return tuple(sorted(found, key=lambda far: far.clipped / far.amax))


def pairs_of(plan: Plan) -> dict[tuple[str, Quantizer], tuple[Placement, ...]]:
    """Return the pairs of a plan: the placements of each tensor, as `Edge.read` gives it, and quantizer, in plan order."""
    pairs: dict[tuple[str, Quantizer], list[Placement]] = {}
    for placement in plan.placements:
        pairs.setdefault((placement.edge.read, placement.quantizer), []).append(placement)
    return {key: tuple(placements) for key, placements in pairs.items()}


def require_model(plan: Plan, index: GraphIndex) -> None:
    """Raise PlanError unless the plan was made for this very model."""
    if plan.digest != index.source.digest:
        raise PlanError(f"the plan is for {plan.model} with digest {plan.digest[:12]}, but {index.source.name} has {index.source.digest[:12]}; plan again")
    for placement in plan.placements:
        if not _fits(placement, index):
            raise PlanError(f"{placement.quantizer} on {placement.edge}: {index.source.name} has no such edge, or none that takes this format; plan again")
    planned = {p.edge.read for p in plan.placements}
    for tensor in (t for group in plan.scale_groups for t in group.tensors):
        if tensor not in planned:
            raise PlanError(f"scale_groups names {tensor!r}, which the plan does not quantize; plan again")


def _fits(placement: Placement, index: GraphIndex) -> bool:
    edge, quantizer = placement.edge, placement.quantizer
    if edge.graph not in index.scopes:
        return False
    index = index.scopes[edge.graph]
    node = index.by_label.get(edge.node)
    if node is None or not 0 <= edge.slot < len(node.inputs) or node.inputs[edge.slot] != edge.tensor:
        return False
    rank = index.rank(edge.tensor)
    fits = quantizer.axis is None or (FORMATS[quantizer.name].per_channel and (rank is None or 0 <= quantizer.axis < rank))
    return fits and (quantizer.calibrated or index.is_constant(edge.tensor))


def _pair_scale(
    index: GraphIndex, placements: tuple[Placement, ...], ranges: dict[str, TensorRange], amax: dict[tuple[str, str], float], weights: str
) -> PairScale:
    tensor, quantizer = placements[0].edge.read, placements[0].quantizer
    values = np.array([amax[tensor, quantizer.dtype]]) if quantizer.calibrated else _weight_amax(index, placements, ranges, weights)
    values = np.where(values > 0.0, values, values.dtype.type(DEAD_AMAX))
    scales = np.maximum((values / values.dtype.type(quantizer.element.largest)).astype(np.float32), np.finfo(np.float32).tiny)
    return PairScale(tensor, quantizer, tuple(float(s) for s in scales))


def _weight_amax(index: GraphIndex, placements: tuple[Placement, ...], ranges: dict[str, TensorRange], way: str) -> Array:
    """Return the amax of a weight in one of the WEIGHTS ways; where the layer's input was not observed, ``shift`` takes the largest value."""
    edge, quantizer = placements[0].edge, placements[0].quantizer
    weight, node = np.asarray(index.scope(edge).constant(edge.tensor), np.float32), index.node(edge)
    if not np.isfinite(weight).all():
        raise ModelError(f"{index.source.name}: weight {edge.tensor!r} holds NaN or Inf; export the model again, or pass --leave-float {node.label!r}")
    if way == "mse":
        return least_error_amax(weight, quantizer.axis, quantizer.element)
    seen = ranges.get(qualified(edge.graph, node.inputs[0]))
    moments = seen.moments if seen else None
    if way == "max" or quantizer.axis is None or edge.slot != 1 or moments is None or len(placements) > 1:
        return channel_amax(weight, quantizer.axis)
    shaped, group, mean = by_channels(node, weight), int(node.attribute("group", 1)), moments.mean
    if shaped is None or shaped.shape[1] * group != mean.size:
        return channel_amax(weight, quantizer.axis)
    return least_shift_amax(shaped, mean, moments.variance, group, quantizer.element)
