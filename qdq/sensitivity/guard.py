"""The guard: a small part of a network that makes most of the error is left in float.

It is on by default where `quantize` has data. It measures on a few calibration samples, and goes by
what the release of a part gains and not by a threshold alone: a network may look good sample by
sample, and lose what matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from qdq.sensitivity.float_search import (
    Candidate,
    SearchLimits,
    SearchResult,
    search_float_groups,
)
from qdq.sensitivity.output_noise import to_decibels, to_gain
from qdq.sensitivity.partial_result import (
    WARN_BELOW_DB,
    PartialResult,
    WorstLayer,
    find_worst_layers,
    measure_gains,
)
from qdq.sensitivity.plan_sensitivity import PlanSensitivity

#: The largest share of the multiply-accumulates that is left in float, unless requested otherwise.
DEFAULT_GUARD = 0.03

#: The number of samples that judge a release, and how many of them the search for it runs.
GUARD_SAMPLES = 8
_SEARCH_SAMPLES = 4

#: The least gain, in dB, for which a part is left in float: a fifth of the error's energy.
_LEAST_GAIN_DB = 1.0

#: Above this signal-to-noise ratio in dB, at the scores, nothing is searched: float layers cost
#: conversions, and no task of docs/results.md shows a difference.
_GOOD_ENOUGH_DB = 30.0

#: The groups that are measured alone, and how many of them may be released.
_SHORTLIST = 24
_MOST_GROUPS = 6

#: The ratio of noise below which a layer does not matter: 0.25 dB.
_LEAST_DIFFERENCE = 10**0.025


def guard_plan(sensitivity: PlanSensitivity, most_work: float = DEFAULT_GUARD) -> PartialResult:
    """Return the part of a plan to leave in float, at most `most_work` of its work."""
    measurement = sensitivity.measurement
    full = sensitivity.full
    int8_snr_db = to_decibels(measurement.measure_outputs(full))
    unchanged = PartialResult(
        goal=f"guard {most_work:.3g}",
        is_reached=True,
        samples=measurement.count,
        int8_snr_db=int8_snr_db,
        snr_db=int8_snr_db,
        sensitive=(),
        work=0.0,
        int8_work=sensitivity.int8_work,
    )
    if to_decibels(measurement.measure(full)) >= _GOOD_ENOUGH_DB:
        return unchanged
    small = [group for group in sensitivity.groups if sensitivity.work_share(group) <= most_work]
    shortlist = sensitivity.shortlist(small, _SHORTLIST)
    candidates = sensitivity.measure_alone(shortlist, samples=1)
    result = _search(sensitivity, candidates, most_work)
    rest = full.difference(*(candidate.pairs for candidate in result.released))
    if to_gain(measurement.measure(full), measurement.measure(rest)) < _LEAST_GAIN_DB:
        result, rest = result.without_release(), full
    snr_db = to_decibels(measurement.measure_outputs(rest))
    return PartialResult(
        goal=unchanged.goal,
        is_reached=True,
        samples=measurement.count,
        int8_snr_db=int8_snr_db,
        snr_db=snr_db,
        sensitive=measure_gains(measurement, full, result.released, _SEARCH_SAMPLES),
        work=result.work,
        int8_work=sensitivity.int8_work - result.work,
        worst=_find_worst(sensitivity, result, snr_db),
    )


def _find_worst(
    sensitivity: PlanSensitivity, result: SearchResult, snr_db: float
) -> tuple[WorstLayer, ...]:
    """Return the worst layers of a bad model, of any size."""
    if snr_db >= WARN_BELOW_DB:
        return ()
    candidates = sensitivity.measure_alone(sensitivity.groups, samples=1)
    return find_worst_layers(candidates, result, snr_db)


def _search(
    sensitivity: PlanSensitivity, candidates: Iterable[Candidate], most_work: float
) -> SearchResult:
    limits = SearchLimits(most_work, _MOST_GROUPS, difference=_LEAST_DIFFERENCE)
    measure = partial(sensitivity.measurement.measure_all, samples=_SEARCH_SAMPLES)
    return search_float_groups(list(candidates), sensitivity.full, measure, limits)
