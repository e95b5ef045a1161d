"""The groups of a plan in order of the loss that their INT8 makes, and what makes it.

Only the groups that `PlanSensitivity.rank_alone` measures with all samples are worth a closer look:
what their release gains, and whether weights or activations make their noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from qdq.metrics.metric import Metric
from qdq.ranges.tensor_ranges import Ranges
from qdq.sensitivity.clipping import ClippingShares
from qdq.sensitivity.float_search import Candidate, Pairs
from qdq.sensitivity.measurement import drop_of
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity
from qdq.sensitivity.predicted_noise import NoisePredictor

#: The samples that a closer look at a group takes, and the shares of its noise.
_GAIN_SAMPLES = 4
_SHARE_SAMPLES = 1

#: The share of the whole plan's noise below which a group gets no closer look.
_NEGLIGIBLE = 0.005

_DIGITS = 4


class MetricLoss(msgspec.Struct, frozen=True):
    """What a group costs by the metric."""

    #: The drop of the score with the pairs of the group alone.
    drop: float
    #: What the release of the group adds to the score of the whole plan.
    gain: float


class GroupSensitivity(msgspec.Struct, frozen=True):
    """What the INT8 of one group costs.

    Signal-to-noise ratios are in dB, null where nothing differs. Shares are from 0 to 1.
    """

    #: The label of the layer, the tensor or tensors, or the first and the last layer of a block.
    name: str
    #: The nodes to leave in float, as `--leave-float` and rules name them.
    nodes: tuple[str, ...]
    #: The nodes that lose pairs then.
    released_nodes: tuple[str, ...]
    #: The share of the model's multiply-accumulates that these make.
    work: float
    #: The signal-to-noise ratio with the pairs of this group alone.
    snr_db: float
    #: The number of samples that it was measured with.
    samples: int
    #: What the ratio of the whole plan gains without the pairs of this group; null where that was
    #: not measured because the group makes little noise.
    gain_db: float | None = None
    #: The share of the group's noise that its activations make, and the share of its weights; null
    #: where they were not measured.
    activation_share: float | None = None
    weight_share: float | None = None
    #: The share of clipping in the error of the activations, the rest is rounding: it follows from
    #: histograms and scales. Null where there is no histogram.
    clipping_share: float | None = None
    #: The ratio at the results of the group's nodes as histograms, weights and scales predict it;
    #: null without histograms.
    predicted_snr_db: float | None = None
    #: Absent without a metric; null where the group was not scored because it makes little noise.
    metric: MetricLoss | msgspec.UnsetType | None = msgspec.UNSET


class GroupRanking:
    """The ranking of one plan's groups."""

    def __init__(
        self,
        calibrated: CalibratedPlan,
        sensitivity: PlanSensitivity,
        metric: Metric | None = None,
    ) -> None:
        self._sensitivity = sensitivity
        self._measurement = sensitivity.measurement
        self._metric = metric
        self._predictor: NoisePredictor | None = None
        self._clipping: ClippingShares | None = None
        if calibrated.ranges is not None and _has_histograms(calibrated.ranges):
            index, ranges, scales = calibrated.index, calibrated.ranges, calibrated.scales
            self._predictor = NoisePredictor(index, ranges, scales)
            self._clipping = ClippingShares(ranges, scales)
        #: The scores of the float model and of the whole plan; NaN without a metric.
        self.float_score = self._score(frozenset())
        self.int8_score = self._score(sensitivity.full)

    def run(self) -> tuple[GroupSensitivity, ...]:
        """Return the groups, the largest loss first.

        Raises MetricError where the metric does not fit the model.
        """
        candidates = self._sensitivity.rank_alone(self._sensitivity.groups)
        described = [self._describe(candidate) for candidate in candidates]
        worst = [item for item in candidates if item.samples == self._measurement.count]
        closer = self._look_closer(self._select_noticed(worst), described)
        if self._metric is not None:
            return tuple(self._score_all(worst, closer))
        return tuple(closer)

    def _select_noticed(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the candidates whose noise alone is not negligible, of some that are sorted."""
        noise = self._measurement.measure(self._sensitivity.full)
        return [item for item in candidates if item.alone > _NEGLIGIBLE * noise]

    def _describe(self, candidate: Candidate) -> GroupSensitivity:
        group = candidate.group
        predicted = None
        clipping = None
        if self._predictor is not None:
            predicted = round(to_decibels(self._predictor.predict(group)), 2)
        if self._clipping is not None:
            clipping = self._clipping.find_share(group)
        return GroupSensitivity(
            name=group.name,
            nodes=group.owners,
            released_nodes=group.nodes,
            work=round(candidate.work, 6),
            snr_db=round(to_decibels(candidate.alone), 2),
            samples=candidate.samples,
            clipping_share=None if clipping is None else round(clipping, _DIGITS),
            predicted_snr_db=predicted,
        )

    def _look_closer(
        self, candidates: Sequence[Candidate], described: Sequence[GroupSensitivity]
    ) -> list[GroupSensitivity]:
        """Return all groups, some of them with their gains and the shares of their noise."""
        full = self._sensitivity.full
        parts = [full, *(full - candidate.pairs for candidate in candidates)]
        full_noise, *without = self._measurement.measure_all(parts, _GAIN_SAMPLES)
        shares = self._measure_weight_shares(candidates)
        by_name = {group.name: group for group in described}
        for candidate, noise, share in zip(candidates, without, shares, strict=True):
            name = candidate.group.name
            gain_db = to_decibels(noise) - to_decibels(full_noise)
            by_name[name] = msgspec.structs.replace(
                by_name[name],
                gain_db=round(gain_db, 2),
                activation_share=None if share is None else round(1.0 - share, _DIGITS),
                weight_share=None if share is None else round(share, _DIGITS),
            )
        return list(by_name.values())

    def _measure_weight_shares(self, candidates: Iterable[Candidate]) -> list[float | None]:
        """Return the share of weights in the noise of each candidate."""
        parts: list[Pairs] = []
        for candidate in candidates:
            pairs = candidate.pairs
            activations = frozenset(item for item in pairs if item.quantizer.calibrated)
            parts += [activations, pairs - activations]
        measured = iter(self._measurement.measure_all(parts, _SHARE_SAMPLES))
        shares: list[float | None] = []
        for activation_noise, weight_noise in zip(measured, measured, strict=True):
            total = activation_noise + weight_noise
            shares.append(weight_noise / total if total > 0.0 else None)
        return shares

    def _score_all(
        self, worst: Sequence[Candidate], described: Sequence[GroupSensitivity]
    ) -> list[GroupSensitivity]:
        """Return groups with the metric's losses of the worst ones, the largest drop first."""
        rest = {group.name: group for group in described}
        scored: list[tuple[float, GroupSensitivity]] = []
        for candidate in worst:
            group = rest.pop(candidate.group.name)
            drop = drop_of(self._score(candidate.pairs), self.float_score)
            gain = self._score(self._sensitivity.full - candidate.pairs) - self.int8_score
            loss = MetricLoss(round(drop, 6), round(gain, 6))
            scored.append((drop, msgspec.structs.replace(group, metric=loss)))
        scored.sort(key=lambda item: -item[0])
        return [
            *(group for _, group in scored),
            *(msgspec.structs.replace(group, metric=None) for group in rest.values()),
        ]

    def _score(self, pairs: Pairs) -> float:
        if self._metric is None:
            return math.nan
        return self._measurement.score(self._metric, pairs, self._sensitivity.outputs)


def _has_histograms(ranges: Ranges) -> bool:
    """Whether the statistics of activations were observed, and not only their largest values."""
    return all(item.histogram is not None for item in ranges.by_tensor)
