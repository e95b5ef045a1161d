"""Budgets: the smallest part in float that reaches an accuracy, or the best within some work."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qdq.metrics.metric import Metric
from qdq.metrics.score_drop import Drop
from qdq.sensitivity.float_search import (
    MeasureFunction,
    Pairs,
    SearchLimits,
    SearchResult,
    release_first,
    search_float_groups,
)
from qdq.sensitivity.measurement import drop_of
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.partial_result import (
    PartialResult,
    choose_steps,
    find_worst_layers,
    measure_gains,
)
from qdq.sensitivity.plan_sensitivity import PlanSensitivity

#: The samples that groups are measured alone with, and those that the search measures with where
#: no metric needs all.
RANK_SAMPLES = 2
BUDGET_SAMPLES = 8


class Budget(msgspec.Struct, frozen=True):
    """What a quantized model must reach, and what it may cost."""

    #: The least signal-to-noise ratio at the outputs in dB.
    min_snr_db: float | None = None
    #: The metric, and its largest drop from the float model.
    metric: Metric | None = None
    max_drop: Drop | None = None
    #: The largest share of the multiply-accumulates to leave in float.
    keep_float: float | None = None
    #: How many groups to leave in float in order of their rank, without measuring again.
    first: int | None = None

    def __str__(self) -> str:
        parts: list[str] = []
        if self.min_snr_db is not None:
            parts.append(f"min-snr {self.min_snr_db:g} dB")
        if self.max_drop is not None and self.metric is not None:
            parts.append(f"max-drop {self.max_drop} of {self.metric.name}")
        if self.keep_float is not None:
            parts.append(f"keep-float {self.keep_float:.3g}")
        if self.first is not None:
            parts.append(f"first {self.first}")
        return ", ".join(parts)


def search_budget(sensitivity: PlanSensitivity, budget: Budget) -> PartialResult:
    """Return the part of a plan to leave in float for a budget.

    Raises MetricError where the metric does not fit the model.
    """
    search = _BudgetSearch(sensitivity, budget)
    return search.run()


class _BudgetSearch:
    """The search for one budget."""

    def __init__(self, sensitivity: PlanSensitivity, budget: Budget) -> None:
        self._sensitivity = sensitivity
        self._measurement = sensitivity.measurement
        self._budget = budget
        self._float_score = self._score(frozenset()) if budget.max_drop else 0.0

    def run(self) -> PartialResult:
        """Rank all groups, and release them until the budget is reached."""
        full = self._sensitivity.full
        candidates = self._sensitivity.measure_alone(self._sensitivity.groups, RANK_SAMPLES)
        measure, target = self._make_measure()
        if self._budget.first is not None:
            result = release_first(candidates, full, measure, self._budget.first)
        else:
            limits = SearchLimits(
                work=1.0 if self._budget.keep_float is None else self._budget.keep_float,
                loss=target,
            )
            result = search_float_groups(candidates, full, measure, limits)
        is_reached = target is None or result.loss <= target
        partial = self._describe(result, is_reached)
        worst = find_worst_layers(candidates, result, partial.snr_db)
        return msgspec.structs.replace(partial, worst=worst)

    def _make_measure(self) -> tuple[MeasureFunction, float | None]:
        """Return the loss that the search lowers, and the loss to reach."""
        budget = self._budget
        if budget.max_drop is not None:
            least_score = budget.max_drop.least_score(self._float_score)
            return self._measure_drops, self._float_score - least_score
        if budget.min_snr_db is None:
            return self._measurement.measure_all, None
        return self._measure_outputs, 10 ** (-budget.min_snr_db / 10)

    def _measure_outputs(self, parts: Sequence[Pairs]) -> list[float]:
        self._measurement.measure_all(parts)  # all runs at once
        return [self._measurement.measure_outputs(part) for part in parts]

    def _measure_drops(self, parts: Sequence[Pairs]) -> list[float]:
        drops: list[float] = []
        for part in parts:
            drops.append(drop_of(self._score(part), self._float_score))
        return drops

    def _score(self, pairs: Pairs) -> float:
        metric = self._budget.metric
        if metric is None:
            return 0.0
        return self._measurement.score(metric, pairs, self._sensitivity.outputs)

    def _describe(self, result: SearchResult, is_reached: bool) -> PartialResult:
        full = self._sensitivity.full
        rest = full.difference(*(candidate.pairs for candidate in result.released))
        measurement = self._measurement
        scores: tuple[float, float, float] | msgspec.UnsetType = msgspec.UNSET
        if self._budget.max_drop is not None:
            scores = (self._float_score, self._score(full), self._score(rest))
        return PartialResult(
            goal=str(self._budget),
            is_reached=is_reached,
            samples=measurement.count,
            int8_snr_db=to_decibels(measurement.measure_outputs(full)),
            snr_db=to_decibels(measurement.measure_outputs(rest)),
            sensitive=measure_gains(measurement, full, result.released),
            work=result.work,
            int8_work=self._sensitivity.int8_work - result.work,
            steps=choose_steps(result.steps),
            scores=scores,
        )
