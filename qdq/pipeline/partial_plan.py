"""Partial quantization: the plan again, with the part in float that a measurement found."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qdq.calibration.scales import PairScale, Scales
from qdq.data.feeds import DataLike, FeedSample
from qdq.data.sample_recorder import read_samples_again
from qdq.graph.index import GraphIndex
from qdq.memory import format_gigabytes
from qdq.observers.collection import Observing
from qdq.pipeline.quantize_request import PartialOptions
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index
from qdq.rules.rule import RuleSet
from qdq.sensitivity.budget import BUDGET_SAMPLES, search_budget
from qdq.sensitivity.guard import GUARD_SAMPLES, guard_plan
from qdq.sensitivity.partial_result import PartialResult
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity

#: The most bytes of weights with which the guard runs by itself: it holds them three times.
_MOST_GUARDED_BYTES = 1 << 29


class PartialData(msgspec.Struct, frozen=True):
    """The samples that a search measures with, and how they are run."""

    data: DataLike
    batch: int | None
    observing: Observing

    def read(self, index: GraphIndex, options: PartialOptions) -> list[FeedSample]:
        """Return the samples: a few, or all for a metric."""
        count: int | None = GUARD_SAMPLES
        if options.budget is not None:
            count = None if options.budget.max_drop is not None else BUDGET_SAMPLES
        return read_samples_again(index, self.data, self.batch, count)


def find_partial_plan(
    calibrated: CalibratedPlan, data: PartialData, options: PartialOptions
) -> PartialResult | str:
    """Return the part of a plan to leave in float, or why it was not searched for.

    Raises ModelError where ONNX Runtime rejects the model, DataError where it fails on a sample,
    and MetricError where the metric of a budget does not fit.
    """
    reason = _find_obstacle(calibrated, data.observing)
    if options.budget is None and reason:
        return reason
    samples = data.read(calibrated.index, options)
    sensitivity = PlanSensitivity(
        calibrated,
        samples,
        libraries=data.observing.ort_libraries,
        progress=options.progress,
    )
    if options.budget is not None:
        return search_budget(sensitivity, options.budget)
    return guard_plan(sensitivity, options.guard)


def _find_obstacle(calibrated: CalibratedPlan, observing: Observing) -> str:
    """Return why the guard does not run by itself, "" where it does."""
    size = _count_weight_bytes(calibrated.index, calibrated.plan)
    most = _MOST_GUARDED_BYTES
    if observing.max_memory is not None:
        most = min(most, observing.max_memory // 8)
    if size <= most:
        return ""
    return (
        f"the guard did not run: it holds the weights ({format_gigabytes(size)}) three times. "
        "Pass a budget, such as --min-snr 25dB, to search all the same."
    )


def _count_weight_bytes(index: GraphIndex, plan: Plan) -> int:
    """Return the size of the float weights that a plan quantizes, four bytes a value."""
    sizes: dict[str, int] = {}
    for placement in plan.placements:
        if placement.quantizer.calibrated:
            continue
        edge = placement.edge
        shape = index.scope(edge).shape(edge.tensor) or ()
        count = 4
        for size in shape:
            count *= size or 1
        sizes[edge.qualified_tensor] = count
    return sum(sizes.values())


def plan_partially(index: GraphIndex, plan: Plan, rules: RuleSet, result: PartialResult) -> Plan:
    """Return a plan again, with the sensitive layers of a result in float."""
    request = PlanRequest(
        rules=rules,
        targets=plan.targets,
        leave_float=plan.leave_float,
        allow_unmatched=True,
        profiles=plan.profiles,
        sensitive=(*(plan.sensitive or ()), *result.sensitive),
    )
    return plan_index(index, request)


def list_weight_scales(scales: Scales) -> Iterable[PairScale]:
    """Return the scales of weights."""
    return (item for item in scales.by_pair if not item.quantizer.calibrated)
