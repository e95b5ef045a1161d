"""The result of a search for the part of a network to leave in float."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from qdq.planning.decisions import SensitiveLayer
from qdq.sensitivity.float_search import Candidate, Pairs, SearchResult, SearchStep
from qdq.sensitivity.measurement import NoiseMeasurement
from qdq.sensitivity.output_noise import to_decibels, to_gain

#: Below this signal-to-noise ratio in dB most tasks lose accuracy.
WARN_BELOW_DB = 15.0

_WORST = 3


class WorstLayer(msgspec.Struct, frozen=True):
    """A layer whose INT8 alone makes much of the error."""

    node: str
    #: The signal-to-noise ratio at the scores with this layer alone in INT8, in dB.
    snr_db: float
    #: The share of the multiply-accumulates.
    work: float


class PartialResult(msgspec.Struct, frozen=True):
    """What a search measured, and what it left in float.

    Ratios are in dB, null where nothing differs. Those of a search are measured at the scores:
    before a final Softmax or Sigmoid, whose outputs saturate.
    """

    #: What was searched for, as "guard 3 %" or "min-snr 22 dB".
    goal: str
    #: Whether the goal was reached; a guard has none to miss.
    is_reached: bool
    #: The number of samples.
    samples: int
    #: The signal-to-noise ratio at the outputs with the whole plan in INT8.
    int8_snr_db: float
    #: The same with the sensitive layers in float.
    snr_db: float
    #: The layers left in float.
    sensitive: tuple[SensitiveLayer, ...]
    #: The share of the multiply-accumulates of the model that they make.
    work: float
    #: The share of the multiply-accumulates that remains in INT8.
    int8_work: float
    #: The layers that make the largest errors alone, of those that stay in INT8; only where the
    #: model stays bad.
    worst: tuple[WorstLayer, ...] = ()
    #: The measured points of the trade-off, by the released work. The loss is noise, the inverse
    #: of a signal-to-noise ratio at the scores, or the drop of the metric.
    steps: tuple[SearchStep, ...] = ()
    #: The scores of the float model, all in INT8, and of the result; absent without a metric.
    scores: tuple[float, float, float] | msgspec.UnsetType = msgspec.UNSET


def measure_gains(
    measurement: NoiseMeasurement,
    full: Pairs,
    released: Iterable[Candidate],
    samples: int | None = None,
) -> tuple[SensitiveLayer, ...]:
    """Return the layers of released groups with the gain of each group, the largest first.

    They are measured over the first samples or all.
    """
    groups = list(released)
    rest = full.difference(*(candidate.pairs for candidate in groups))
    parts = [rest, *(rest | candidate.pairs for candidate in groups)]
    losses = measurement.measure_all(parts, samples)
    layers: list[SensitiveLayer] = []
    for candidate, loss in zip(groups, losses[1:], strict=True):
        gain_db = round(to_gain(loss, losses[0]), 2)
        for node in candidate.group.owners:
            layers.append(SensitiveLayer(node, gain_db))
    return tuple(sorted(layers, key=lambda layer: (-layer.gain_db, layer.node)))


def find_worst_layers(
    candidates: Iterable[Candidate], result: SearchResult, snr_db: float
) -> tuple[WorstLayer, ...]:
    """Return the worst layers of a bad model that stay in INT8."""
    if snr_db >= WARN_BELOW_DB:
        return ()
    remaining = [candidate for candidate in candidates if candidate not in result.released]
    remaining.sort(key=lambda candidate: -candidate.alone)
    return tuple(map(_describe_worst, remaining[:_WORST]))


def _describe_worst(candidate: Candidate) -> WorstLayer:
    snr_db = round(to_decibels(candidate.alone), 2)
    return WorstLayer(candidate.group.name, snr_db, candidate.work)


def choose_steps(steps: Sequence[SearchStep]) -> tuple[SearchStep, ...]:
    """Return the steps of a trade-off curve: those that no step of less work is as good as."""
    chosen: list[SearchStep] = []
    for step in sorted(steps, key=lambda step: (step.work, step.loss)):
        if not chosen or step.loss < chosen[-1].loss:
            chosen.append(step)
    return tuple(chosen)
