"""The calibrated plan of an equalized model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from qdq.calibration.scale_choice import choose_scales
from qdq.calibration.scales import PairScale
from qdq.data.feeds import DataLike, FeedSample
from qdq.data.sample_recorder import repeatable_data
from qdq.graph.equalized_weights import Equalization
from qdq.graph.index import GraphIndex
from qdq.observers.collection import CollectionJob, Observing, collect_locally
from qdq.pipeline.recovery_job import LEAST_GAIN_DB, RecoveryJob, repeat_request
from qdq.planning.planner import plan_index
from qdq.ranges.tensor_ranges import Ranges
from qdq.recovery.equalization import EqualizationSearch, require_restorable, scale_source
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity

#: The samples that channels are measured with for their factors, and scales for a trial.
_MOST_SAMPLES = 8

#: The samples that show whether equalization may gain anything.
FIRST_SAMPLES = 2


class EqualizedPlan(msgspec.Struct, frozen=True):
    """The calibrated plan of an equalized model."""

    calibrated: CalibratedPlan
    equalizations: tuple[Equalization, ...]
    #: Whether ranges are those of all samples.
    has_all_samples: bool


class PlanEqualizer:
    """Equalizes the model of a calibrated plan."""

    def __init__(self, job: RecoveryJob, search: EqualizationSearch) -> None:
        self._job = job
        self._search = search

    def equalize(
        self, sensitivity: PlanSensitivity, samples: Sequence[FeedSample]
    ) -> EqualizedPlan | None:
        """Return the plan of the equalized model, None where little is to be gained.

        Its ranges are those of the first samples.
        """
        share = self._measure_share(sensitivity)
        if not _can_gain(share, math.inf):
            return None
        feeds = [sample.feed for sample in samples[:_MOST_SAMPLES]]
        equalizations = self._search.run(feeds)
        if not _can_gain(share, max((item.gain_db for item in equalizations), default=0.0)):
            return None
        count = self._job.calibrated.scales.samples
        has_all_samples = count <= len(feeds)
        calibrated = self._calibrate(equalizations, feeds)
        return EqualizedPlan(calibrated, equalizations, has_all_samples)

    def observe_all(self, equalized: EqualizedPlan) -> EqualizedPlan:
        """Return the plan with the ranges of all samples."""
        equalizations = equalized.equalizations
        calibrated = self._calibrate(equalizations, repeatable_data(self._job.data))
        return EqualizedPlan(calibrated, equalizations, has_all_samples=True)

    def require_restorable(self, equalized: EqualizedPlan) -> None:
        """Raise ModelError where undoing does not restore the weights byte for byte."""
        source = self._job.calibrated.index.source
        equalized_source = equalized.calibrated.index.source
        require_restorable(source, equalized_source, equalized.equalizations)

    def _measure_share(self, sensitivity: PlanSensitivity) -> float:
        """Return the share of the noise that the layers make whose inputs may get factors."""
        layers = {(edge.graph, edge.node) for edge in self._search.edges}
        pairs = [item for item in sensitivity.full if (item.edge.graph, item.edge.node) in layers]
        parts = [pairs, sensitivity.full]
        alone, full = sensitivity.measurement.measure_all(parts, FIRST_SAMPLES)
        return min(alone / full, 1.0) if full > 0.0 else 0.0

    def _calibrate(self, equalizations: tuple[Equalization, ...], data: DataLike) -> CalibratedPlan:
        """Return the equalized model's plan; only tensors with factors are observed."""
        job = self._job
        before = job.calibrated
        assert before.ranges is not None
        index = GraphIndex(scale_source(before.index.source, equalizations))
        plan = plan_index(index, repeat_request(before.plan, job.rules))
        changed = {tensor for item in equalizations for tensor in item.tensors}
        observed = [item for item in plan.placements if item.edge.qualified_tensor in changed]
        part = msgspec.structs.replace(plan, placements=tuple(observed))
        collection = CollectionJob(index, part, data, job.method.needs_histogram, job.batch)
        ranges = _replace_ranges(before.ranges, self._observe(collection), plan.digest)
        weights = _list_kept_weights(before, equalizations)
        scales = choose_scales(index, plan, ranges, job.method, weights=weights)
        return CalibratedPlan(index, plan, scales, ranges)

    def _observe(self, collection: CollectionJob) -> Ranges:
        observing = self._job.observing
        same_machine = Observing(
            device=observing.device, cores=observing.cores, ort_libraries=observing.ort_libraries
        )
        return collect_locally(collection, same_machine)


def open_equalizer(job: RecoveryJob) -> PlanEqualizer | None:
    """Return the equalizer of a plan's model, None where no channels can have factors.

    Ranges must be observed: given ones are those of the channels as they are.
    """
    if job.summary is not None or job.calibrated.ranges is None:
        return None
    search = EqualizationSearch(job.calibrated.index, job.calibrated.plan)
    return PlanEqualizer(job, search) if search.edges else None


def _can_gain(share: float, gain_db: float) -> bool:
    """Whether a model gains enough where a share of its noise is lowered by some decibels."""
    return share * _lowered_by(gain_db) >= _lowered_by(LEAST_GAIN_DB)


def _lowered_by(gain_db: float) -> float:
    """Return the share of noise that a gain removes."""
    return 1.0 - math.pow(10.0, -gain_db / 10.0)


def _replace_ranges(ranges: Ranges, observed: Ranges, digest: str) -> Ranges:
    """Return ranges for another model, with those of some tensors replaced."""
    new_ranges = {item.tensor: item for item in observed.by_tensor}
    by_tensor = tuple(new_ranges.get(item.tensor, item) for item in ranges.by_tensor)
    return msgspec.structs.replace(ranges, model=digest, by_tensor=by_tensor)


def _list_kept_weights(
    before: CalibratedPlan, equalizations: tuple[Equalization, ...]
) -> list[PairScale]:
    """Return the scales of weights that have no factors."""
    changed = {weight.tensor for item in equalizations for weight in item.weights}
    return [
        item
        for item in before.scales.by_pair
        if not item.quantizer.calibrated and item.tensor not in changed
    ]
