"""Calibration: the scales of a plan from the ranges of its tensors."""

from __future__ import annotations

from qdq.arguments import require_callable, require_type
from qdq.calibration.methods import DEFAULT_METHOD, Method, parse_method
from qdq.calibration.scale_choice import choose_scales
from qdq.calibration.scales import Scales
from qdq.data.feeds import DataLike
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.observers.collection import DEFAULT_OBSERVING, CollectionJob, Observing
from qdq.observers.distributed import collect_ranges
from qdq.planning.decisions import Plan
from qdq.planning.plan_edits import require_model, require_plan
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.ranges.given_ranges import (
    GivenRanges,
    GivenSummary,
    complete_without_data,
    match_given_ranges,
)
from qdq.ranges.known_ranges import KnownRanges, RangesLike, to_known_ranges
from qdq.ranges.tensor_ranges import Ranges, TensorRange
from qdq.runtime.session import Progress


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
    given: RangesLike | None = None,
) -> Scales:
    """Return the scales of a plan, from runs of the float model over the data in ONNX Runtime.

    `method` and `weights` are as `parse_method` accepts them. A `given` range replaces the one
    that the method would choose. Without data, `given` must hold every planned activation, and
    weights take their largest values, or their least-error ranges with ``mse``. Raises PlanError
    for the plan of another model, and DataError for data or given ranges that do not fit.
    """
    weighted_method = parse_method(method, weights)
    require_plan(plan)
    require_callable(progress, "progress")
    require_type(observing, Observing, "observing", "qdq.Observing(...)")
    known_ranges = to_known_ranges(given)
    index = GraphIndex(source_at_plan_opset(load(model), plan))
    job = CollectionJob(index, plan, data, weighted_method.needs_histogram, batch)
    scales, _ = compute_scales(job, weighted_method, observing, progress, known_ranges)
    return scales


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
    """Return the observed ranges of a plan's activations.

    They hold the statistics that any method needs, or for ``max`` the largest values only.
    `observing.part` selects a part of the samples. `qdq.merge` joins the ranges of several parts,
    and `quantize` and `calibrate` accept ranges as `given`.
    """
    require_plan(plan)
    require_callable(progress, "progress")
    require_type(observing, Observing, "observing", "qdq.Observing(...)")
    index = GraphIndex(source_at_plan_opset(load(model), plan))
    needs_histogram = parse_method(method).needs_histogram
    job = CollectionJob(index, plan, data, needs_histogram, batch)
    return observe_job(job, observing, progress)


def compute_scales(
    job: CollectionJob,
    method: Method,
    observing: Observing = DEFAULT_OBSERVING,
    progress: Progress | None = None,
    known_ranges: KnownRanges | None = None,
) -> tuple[Scales, Ranges]:
    """Return the scales of an indexed model's plan, and the ranges that they were chosen from.

    Raises PlanError for the plan of another model, and DataError for data or ranges that do not
    fit.
    """
    ranges, summary = gather_ranges(job, observing, progress, known_ranges)
    return choose_scales(job.index, job.plan, ranges, method, summary), ranges


def gather_ranges(
    job: CollectionJob,
    observing: Observing = DEFAULT_OBSERVING,
    progress: Progress | None = None,
    known_ranges: KnownRanges | None = None,
) -> tuple[Ranges, GivenSummary | None]:
    """Return the ranges of a plan's activations, observed now or earlier, or made of given ones.

    With them returns which given ranges apply. Raises PlanError and DataError as `compute_scales`
    does.
    """
    require_model(job.plan, job.index)
    summary = None
    if isinstance(known_ranges, GivenRanges):
        summary = match_given_ranges(job.index, job.plan, known_ranges)
    if isinstance(known_ranges, Ranges):
        _require_no_data(job, known_ranges)
        ranges = known_ranges
    elif known_ranges is None and not _has_activations(job.plan):
        ranges = Ranges(job.plan.digest, "", 0, ())
    elif known_ranges is None or job.data is not None:
        if summary is not None:
            exact = summary.amax.keys() - summary.bounded
            job = job.leave_out_uncomputable(exact, observing.ort_libraries)
        ranges = collect_ranges(job, observing, progress)
    else:
        ranges = _make_given_ranges(job, summary)
    return ranges, summary


def _has_activations(plan: Plan) -> bool:
    """Whether a plan has pairs on activations, which alone need samples."""
    return any(placement.quantizer.calibrated for placement in plan.placements)


def observe_job(
    job: CollectionJob, observing: Observing = DEFAULT_OBSERVING, progress: Progress | None = None
) -> Ranges:
    """Return the observed ranges of an indexed model's planned activations.

    Raises PlanError for the plan of another model.
    """
    require_model(job.plan, job.index)
    return collect_ranges(job, observing, progress)


def _make_given_ranges(job: CollectionJob, summary: GivenSummary | None) -> Ranges:
    """Return ranges of no samples, made from given ranges alone."""
    amax = complete_without_data(job.index, job.plan, summary) if summary else {}
    by_tensor = tuple(TensorRange(tensor, value) for tensor, value in amax.items())
    return Ranges(job.plan.digest, "", 0, by_tensor)


def _require_no_data(job: CollectionJob, ranges: Ranges) -> None:
    if job.data is not None:
        raise DataError(
            f"{ranges.data}: these ranges were observed earlier, so no samples are run. "
            "Drop the data, or add ranges with 'qdq ranges merge'."
        )
