"""The sensitivity of a network to the pairs of its plan, measured over a few samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path

import msgspec

from qdq.calibration.scales import Scales
from qdq.cores import count_cores
from qdq.data.feeds import FeedSample
from qdq.graph.index import GraphIndex
from qdq.planning.decisions import Plan
from qdq.ranges.tensor_ranges import Ranges
from qdq.runtime.session import Progress
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators
from qdq.sensitivity.float_search import Candidate, Pairs
from qdq.sensitivity.layer_groups import LAYER, LayerGroup, find_layer_groups
from qdq.sensitivity.layer_work import count_work, measure_shapes
from qdq.sensitivity.measurement import NoiseMeasurement
from qdq.sensitivity.predicted_noise import NoisePredictor
from qdq.sensitivity.scored_tensors import find_scored_tensors
from qdq.sensitivity.switchable_session import SwitchableSession

#: The share of the samples that all groups are ranked over, and the share of the groups that are
#: ranked over all samples.
_RANK_SHARE = 0.25
_LEAST_RANK_SAMPLES = 2

#: The number of runs up to which nothing is spared.
_FEW_RUNS = 128

#: The groups that a shortlist is chosen from by a run each.
_MOST_SCREENED = 256


class CalibratedPlan(msgspec.Struct, frozen=True):
    """A plan with its scales and the ranges that they were chosen from."""

    index: GraphIndex
    plan: Plan
    scales: Scales
    ranges: Ranges | None


class PlanSensitivity:
    """The groups of a plan, their work, and a measurement with any part of their pairs."""

    def __init__(
        self,
        calibrated: CalibratedPlan,
        samples: Sequence[FeedSample],
        by: str = LAYER,
        libraries: Sequence[Path] = (),
        progress: Progress | None = None,
    ) -> None:
        """Open a session and run the float model over the samples.

        Raises ModelError where ONNX Runtime rejects the model, and DataError where it fails on a
        sample.
        """
        index = calibrated.index
        unknown = find_unknown_operators(index.source.model, libraries)
        #: The names of the outputs that ONNX Runtime can compute, or of tensors on their way.
        self.outputs = find_computed_outputs(index, unknown).names
        self._scored = find_scored_tensors(index, self.outputs)
        self._by = by
        self._libraries = tuple(libraries)
        self._set_plan(calibrated)
        self.measurement = NoiseMeasurement(
            self._open_session(calibrated),
            self._scored,
            self.outputs,
            samples,
            count_cores(),
            progress,
        )
        shapes = measure_shapes(index, self.outputs, samples[0].feed, libraries)
        self._work = count_work(index, shapes)

    def with_plan(self, calibrated: CalibratedPlan) -> PlanSensitivity:
        """Return the sensitivity to the pairs of another plan for the same network.

        The network may have other weights that compute the same outputs. The float model is not run
        again.
        """
        sensitivity = copy(self)
        sensitivity._set_plan(calibrated)
        session = self._open_session(calibrated)
        sensitivity.measurement = self.measurement.with_session(session)
        return sensitivity

    def _set_plan(self, calibrated: CalibratedPlan) -> None:
        index, plan = calibrated.index, calibrated.plan
        self.groups = find_layer_groups(index, plan, self._by)
        #: The pairs of the whole plan.
        self.full: Pairs = frozenset(plan.placements)
        self._predictor = None
        if calibrated.ranges is not None:
            self._predictor = NoisePredictor(index, calibrated.ranges, calibrated.scales)

    def _open_session(self, calibrated: CalibratedPlan) -> SwitchableSession:
        names = [*(tensor.name for tensor in self._scored), *self.outputs]
        index, plan, scales = calibrated.index, calibrated.plan, calibrated.scales
        return SwitchableSession(index, plan, scales, names, self._libraries)

    def work_share(self, group: LayerGroup) -> float:
        """Return the share of the model's multiply-accumulates that the group's nodes make."""
        total = sum(self._work.values())
        work = sum(self._work.get(label, 0) for label in group.nodes)
        return work / total if total else 0.0

    @property
    def int8_work(self) -> float:
        """The share of the multiply-accumulates that the whole plan quantizes."""
        total = sum(self._work.values())
        labels = {label for group in self.groups for label in group.nodes}
        return sum(self._work.get(label, 0) for label in labels) / total if total else 0.0

    def shortlist(self, groups: Iterable[LayerGroup], count: int) -> list[LayerGroup]:
        """Return some groups: those that make the most noise alone over one sample.

        Of many groups, only those of the largest predicted noise are run. The prediction does not
        know what later layers make of noise, and alone it would miss some of the worst.
        """
        listed = list(groups)
        if len(listed) <= count:
            return listed
        if len(listed) > _MOST_SCREENED and self._predictor is not None:
            predicted = {group.name: self._predictor.predict(group) for group in listed}
            listed.sort(key=lambda group: -predicted[group.name])
        candidates = self.measure_alone(listed[:_MOST_SCREENED], samples=1)
        candidates.sort(key=lambda candidate: -candidate.alone)
        return [candidate.group for candidate in candidates[:count]]

    def measure_alone(
        self, groups: Sequence[LayerGroup], samples: int | None = None
    ) -> list[Candidate]:
        """Return groups with the noise that their pairs make alone, over the first samples."""
        count = min(samples or self.measurement.count, self.measurement.count)
        measured = self.measurement.measure_all((group.placements for group in groups), count)
        candidates: list[Candidate] = []
        for group, noise in zip(groups, measured, strict=True):
            candidates.append(Candidate(group, self.work_share(group), noise, count))
        return candidates

    def rank_alone(self, groups: Sequence[LayerGroup]) -> list[Candidate]:
        """Return groups with the noise that their pairs make alone, the largest first.

        All are measured over a quarter of the samples, at least two, and the worst quarter over
        all, as successive halving does (Jamieson and Talwalkar, Non-stochastic best arm
        identification, AISTATS 2016). Groups that matter are compared exactly, at half the runs.
        Where that is few runs, all groups are measured over all samples.
        """
        total = self.measurement.count
        ranked = list(groups)
        passes = [(len(ranked), total)]
        if len(ranked) * total > _FEW_RUNS:
            first = max(min(_LEAST_RANK_SAMPLES, total), round(total * _RANK_SHARE))
            passes = [(len(ranked), first), (math.ceil(len(ranked) * _RANK_SHARE), total)]
        candidates: dict[str, Candidate] = {}
        for count, samples in passes:
            for candidate in self.measure_alone(ranked[:count], samples):
                candidates[candidate.group.name] = candidate
            ranked.sort(key=lambda group: -candidates[group.name].alone)
        return [candidates[group.name] for group in ranked]
