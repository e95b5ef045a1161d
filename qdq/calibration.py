"""Ranges -> Scales: one scale for each pair, or one for each channel of a weight."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import msgspec
import numpy as np

from qdq.errors import DataError, ModelError, PlanError, UsageError
from qdq.feeds import DataLike
from qdq.index import Array, GraphIndex, qualified
from qdq.loading import ModelLike, load
from qdq.observation import Progress
from qdq.observing import OBSERVING, Job, Observing
from qdq.planning import Placement, Plan, ScaleGroup, source_for
from qdq.quantizer import FORMATS, ElementType, Quantizer
from qdq.ranges import Ranges, TensorRange
from qdq.spreading import observed
from qdq.weights import by_channels, channel_amax, least_error_amax, least_shift_amax

DEFAULT_METHOD = "mse"
#: Share of absolute values kept within the range; the default of pytorch-quantization's HistogramCalibrator.
DEFAULT_PERCENT = 99.99
#: The range given to a tensor or channel that is zero throughout: any scale would do, this one is harmless.
DEAD_AMAX = 1.0

#: What chooses the scales of weights: the largest value of each channel, the least change of the weights, or of what their layer gives.
WEIGHTS = ("max", "mse", "shift")
#: A tensor that was seen to reach this many times its range is named: its largest values are outliers, and clipped.
OUTLIERS = 8.0

_METHOD = re.compile(r"(?P<name>max|mse|percentile|entropy)(:(?P<percent>\d+(\.\d+)?))?")


class Method(msgspec.Struct, frozen=True):
    """How a range becomes an amax, and how the scales of weights are chosen."""

    #: max, mse, entropy or percentile.
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
        return seen.histogram.least_divergence(element) if self.name == "entropy" else seen.histogram.least_error(element)

    @property
    def needs_histogram(self) -> bool:
        """Whether the largest value alone is not enough."""
        return self.name != "max" or self.weights == "shift"


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


def parse_method(text: str, weights: str | None = None) -> Method:
    """Return the method that ``mse``, ``entropy``, ``max``, ``percentile`` or ``percentile:99.9`` names; raises UsageError for others.

    `weights` is one of WEIGHTS; without it ``max`` takes the largest weights too, and all others ``shift``.
    """
    found = _METHOD.fullmatch(text)
    if not found or (found["name"] != "percentile" and found["percent"]):
        raise UsageError(f"unknown method {text!r}: write max, mse, entropy, percentile or percentile:99.9")
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
    return "max" if name == "max" else "shift"


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
) -> Scales:
    """Return the scales of a plan, computed by running the float model over the data in ONNX Runtime.

    `method` and `weights` are as `parse_method` takes them. Raises PlanError if the plan is another model's,
    DataError for data that does not fit.
    """
    index = GraphIndex(source_for(load(model), plan))
    way = parse_method(method, weights)
    return scales_from(index, plan, ranges_of(Job(index, plan, data, way.needs_histogram, batch), observing, progress), way)


def ranges_of(job: Job, observing: Observing = OBSERVING, progress: Progress | None = None) -> Ranges:
    """Return what the planned activations of an indexed model were seen to hold; raises PlanError if the plan is another model's."""
    require_model(job.plan, job.index)
    return observed(job, observing, progress)


def scales_from(index: GraphIndex, plan: Plan, ranges: Ranges, method: Method) -> Scales:
    """Return the scales that a method makes of observed ranges; the tensors of one scale group get the largest range among them."""
    by_tensor = {seen.tensor: seen for seen in ranges.by_tensor}
    observed = {(tensor, quantizer.dtype): quantizer.element for tensor, quantizer in pairs_of(plan) if quantizer.calibrated}
    _require_ranges(plan, ranges, {tensor for tensor, _ in observed}, method)
    amax = {(tensor, dtype): method.amax(by_tensor[tensor], element) for (tensor, dtype), element in observed.items()}
    for group, dtype in product(plan.scale_groups, sorted({dtype for _, dtype in observed})):
        shared = _shared(group, {tensor: value for (tensor, of), value in amax.items() if of == dtype})
        amax.update({(tensor, dtype): value for tensor, value in shared.items()})
    with ThreadPoolExecutor() as pool:
        pairs = tuple(pool.map(lambda placements: _pair_scale(index, placements, by_tensor, amax, method.weights), pairs_of(plan).values()))
    index.forget_constants()
    dead = tuple(seen.tensor for seen in ranges.by_tensor if seen.amax == 0.0)
    return Scales(plan.key, str(method), ranges.data, ranges.samples, pairs, dead, ranges.batch, _outliers(ranges, amax))


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


def _shared(group: ScaleGroup, amax: Mapping[str, float]) -> dict[str, float]:
    """Return the group's largest range for each member, but for those whose own is smaller by more than the group's ratio."""
    known = {t: amax[t] for t in group.tensors if t in amax}
    largest = max(known.values(), default=0.0)
    least = largest / group.ratio_at_most if group.ratio_at_most else 0.0
    return {t: largest for t, own in known.items() if own >= least or own == 0.0}


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
    values = np.array([amax[tensor, quantizer.dtype]], np.float32) if quantizer.calibrated else _weight_amax(index, placements, ranges, weights)
    values = np.where(values > 0.0, values, np.float32(DEAD_AMAX))
    scales = np.maximum(values / np.float32(quantizer.element.largest), np.finfo(np.float32).tiny)
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
