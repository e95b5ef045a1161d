"""The guard: a small part of a network that makes most of the error is left in float.

It is on by default where `quantize` has data. It measures on a few calibration samples, and goes by
what the release of a part gains and not by a threshold alone: a network may look good sample by
sample, and lose what matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from qdq.arrays import Feed
from qdq.planning.decisions import SensitiveLayer
from qdq.sensitivity.float_search import (
    Candidate,
    SearchLimits,
    SearchResult,
    search_float_groups,
)
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.plan_sensitivity import CalibratedPlan, PlanSensitivity

#: The largest share of the multiply-accumulates that is left in float, unless requested otherwise.
DEFAULT_GUARD = 0.03

#: The number of samples that the guard runs.
GUARD_SAMPLES = 4

#: The least gain, in dB, for which a part is left in float: a fifth of the error's energy.
LEAST_GAIN_DB = 1.0

#: Below this signal-to-noise ratio in dB a model is hardly of use.
WARN_BELOW_DB = 15.0

#: Above this signal-to-noise ratio in dB nothing is searched: no task shows a difference.
_GOOD_ENOUGH_DB = 40.0

#: The groups that are measured alone, and how many of them may be released.
_SHORTLIST = 24
_MOST_GROUPS = 6

#: The ratio of noise below which a layer does not matter: 0.25 dB.
_LEAST_DIFFERENCE = 10**0.025

_WORST = 3


class WorstLayer(msgspec.Struct, frozen=True):
    """A layer whose INT8 alone makes much of the error."""

    node: str
    #: The signal-to-noise ratio at the outputs with this layer alone in INT8, in dB.
    snr_db: float
    #: The share of the multiply-accumulates.
    work: float


class GuardReport(msgspec.Struct, frozen=True):
    """What the guard measured, and what it left in float."""

    #: The number of calibration samples that it ran.
    samples: int
    #: The signal-to-noise ratio at the outputs with the whole plan in INT8, in dB: of the scores
    #: before a final Softmax or Sigmoid. Infinite where nothing differs.
    int8_snr_db: float
    #: The same with the sensitive layers in float.
    snr_db: float
    #: The layers left in float.
    sensitive: tuple[SensitiveLayer, ...]
    #: The share of the multiply-accumulates that they make.
    work: float
    #: The layers that make the largest errors alone, of those that stay in INT8; only where the
    #: model stays bad.
    worst: tuple[WorstLayer, ...] = ()


def find_sensitive_layers(
    calibrated: CalibratedPlan,
    samples: Sequence[Feed],
    most_work: float = DEFAULT_GUARD,
    libraries: Sequence[Path] = (),
) -> GuardReport:
    """Return the part of a plan to leave in float, at most `most_work` of its work.

    Raises ModelError where ONNX Runtime rejects the model, and DataError where it fails on a
    sample.
    """
    sensitivity = PlanSensitivity(calibrated, samples, libraries=libraries)
    measurement = sensitivity.measurement
    noise = measurement.measure(sensitivity.full)
    int8_snr_db = to_decibels(noise)
    unchanged = GuardReport(len(samples), int8_snr_db, int8_snr_db, (), 0.0)
    if int8_snr_db >= _GOOD_ENOUGH_DB:
        return unchanged
    shortlist = sensitivity.shortlist(sensitivity.groups, _SHORTLIST)
    candidates = sensitivity.measure_alone(shortlist, samples=1)
    small = [candidate for candidate in candidates if candidate.work <= most_work]
    limits = SearchLimits(most_work, _MOST_GROUPS, difference=_LEAST_DIFFERENCE)
    result = search_float_groups(small, sensitivity.full, measurement.measure_all, limits)
    gain = to_decibels(result.loss) - to_decibels(result.full_loss)
    if gain < LEAST_GAIN_DB:
        return msgspec.structs.replace(unchanged, worst=_find_worst(candidates, (), int8_snr_db))
    snr_db = to_decibels(result.loss)
    return GuardReport(
        samples=len(samples),
        int8_snr_db=int8_snr_db,
        snr_db=snr_db,
        sensitive=_measure_gains(sensitivity, result),
        work=result.work,
        worst=_find_worst(candidates, result.released, snr_db),
    )


def _measure_gains(
    sensitivity: PlanSensitivity, result: SearchResult
) -> tuple[SensitiveLayer, ...]:
    """Return the released layers with the gain of each, the largest first."""
    released = [candidate.pairs for candidate in result.released]
    rest = sensitivity.full.difference(*released)
    parts = [rest | pairs for pairs in released]
    layers: list[SensitiveLayer] = []
    losses = sensitivity.measurement.measure_all(parts)
    for candidate, loss in zip(result.released, losses, strict=True):
        gain_db = round(to_decibels(result.loss) - to_decibels(loss), 2)
        layers.append(SensitiveLayer(candidate.group.name, gain_db))
    return tuple(sorted(layers, key=lambda layer: -layer.gain_db))


def _find_worst(
    candidates: Sequence[Candidate], released: Sequence[Candidate], snr_db: float
) -> tuple[WorstLayer, ...]:
    """Return the worst layers of a bad model that stay in INT8."""
    if snr_db >= WARN_BELOW_DB:
        return ()
    remaining = [candidate for candidate in candidates if candidate not in released]
    remaining.sort(key=lambda candidate: -candidate.alone)
    return tuple(map(_describe_worst, remaining[:_WORST]))


def _describe_worst(candidate: Candidate) -> WorstLayer:
    snr_db = round(to_decibels(candidate.alone), 2)
    return WorstLayer(candidate.group.name, snr_db, candidate.work)
