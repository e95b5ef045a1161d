"""A second look at ranges: other ranges for the tensors that matter, by the measured output error.

A method chooses a range by the error in the tensor or in the layers that read it. What such an
error does to the outputs is another matter: transformers hold a few enormous values whose
clipping changes nothing (Sun et al. 2024, Massive Activations in Large Language Models,
arXiv:2402.17762). Here each range is tried on real samples with all other pairs off. The errors of
single pairs add up, and are smooth in the range, where those of the whole model vary by several
decibels from one rounding to another. The search goes from one candidate to its neighbour, tensor
by tensor, as in LAPQ's coordinate steps (Nahshan et al. 2019, arXiv:1911.07190).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from qdq.arrays import Feed, Floats
from qdq.calibration.calibrator import OUTLIER_RATIO
from qdq.calibration.scales import OutlierTensor, PairScale, Scales
from qdq.calibration.shared_scales import SharedRange
from qdq.errors import PlanError
from qdq.graph.index import GraphIndex
from qdq.planning.decisions import Plan
from qdq.ranges.tensor_ranges import Ranges
from qdq.recovery.range_candidates import SharedPairs, list_candidates, list_shared_pairs
from qdq.recovery.scaled_session import ErrorMeter, PairKey, ScaledSession, to_decibels

#: A range is only replaced for at least this gain, in dB, in each half of the samples.
_LEAST_GAIN = 0.3

#: The gain of the samples must be this many times its standard error.
_LEAST_SIGNIFICANCE = 2.0

#: Tensors with a smaller share of the noise are not searched.
_LEAST_SHARE = 0.02

#: Of tensors with this share all candidates are tried.
_DOMINANT_SHARE = 0.15

#: The part of the runs that may be spent on ranking the tensors.
_RANKING_SHARE = 0.4

#: Two samples in each half.
_LEAST_SAMPLES = 4

_LEAST_SCALE = np.finfo(np.float32).tiny
_TINY = 1e-30


class RefinedRange(msgspec.Struct, frozen=True):
    """Another range for the tensors that share one, and what it was chosen for."""

    #: The tensors, after the paths of their bodies.
    tensors: tuple[str, ...]
    #: The element type that they are quantized to.
    dtype: str
    #: The range that the method chose, and the one that takes its place.
    old_amax: float
    new_amax: float
    #: The signal-to-noise ratio at the outputs with only these tensors quantized, in dB, with each
    #: of the two ranges.
    snr_before: float
    snr_after: float
    #: The largest absolute value observed in each of the tensors.
    largest: tuple[float, ...]

    @property
    def gain(self) -> float:
        """The gain in dB."""
        return self.snr_after - self.snr_before


class RangeRefinements(msgspec.Struct, frozen=True):
    """The ranges of a plan that another range replaces."""

    #: `Plan.key` of the plan that they belong to.
    plan: str
    #: The ranges, that with the most noise first; empty where no other range is better.
    ranges: tuple[RefinedRange, ...]
    #: The signal-to-noise ratio at the outputs in dB with all activations quantized and weights in
    #: float, with the old and with the new ranges. They are NaN where no other range was better.
    snr_before: float
    snr_after: float
    #: The number of tensors, or groups of them, for which other ranges were tried.
    searched: int
    #: How many times a sample was run.
    runs: int


def refine_ranges(  # noqa: PLR0913 what a search needs: the model, its scales, data and a limit
    index: GraphIndex,
    plan: Plan,
    scales: Scales,
    ranges: Ranges,
    samples: Iterable[Feed],
    measure_budget: int,
    *,
    libraries: Sequence[Path] = (),
) -> RangeRefinements:
    """Return better ranges for the activations that make most of the noise at the outputs.

    At most `measure_budget` times a sample is run. Of the samples one half chooses a range, and the
    other half must confirm it. Ranges that the user specified stay. Raises ModelError where ONNX
    Runtime cannot run the model.
    """
    feeds = list(samples)
    shared = list_shared_pairs(plan, scales)
    nothing = RangeRefinements(plan.key, (), math.nan, math.nan, searched=0, runs=0)
    # The reference, some tensors to rank and to search, and the test of all together.
    least_runs = 4 * len(feeds) + 1
    if len(feeds) < _LEAST_SAMPLES or not shared or measure_budget < least_runs:
        return nothing
    session = ScaledSession(index, plan, scales, libraries)
    if not session.measured:
        return nothing
    meter = ErrorMeter(session, feeds)
    search = _RangeSearch(meter, ranges, measure_budget - 2 * len(feeds))
    for share, pairs in search.rank(shared):
        search.refine(pairs, is_dominant=share >= _DOMINANT_SHARE)
    if not search.refined:
        return msgspec.structs.replace(nothing, searched=search.searched, runs=meter.runs)
    confirmation = _Confirmation(meter, session.scales, measure_budget)
    confirmation.add(search.refined)
    kept = tuple(confirmation.kept)
    snr_before, snr_after = confirmation.snr_before, confirmation.snr_after
    return RangeRefinements(plan.key, kept, snr_before, snr_after, search.searched, meter.runs)


class _RangeSearch:
    """Searches other ranges, tensor by tensor, until the runs are used up."""

    def __init__(self, meter: ErrorMeter, ranges: Ranges, most_runs: int) -> None:
        self._meter = meter
        self._ranges = {item.tensor: item for item in ranges.by_tensor}
        self._most_runs = most_runs
        samples = range(len(meter))
        self._choosing, self._confirming = samples[::2], samples[1::2]
        self.searched = 0
        self.refined: dict[RefinedRange, SharedPairs] = {}

    def rank(self, shared: Sequence[SharedPairs]) -> list[tuple[float, SharedPairs]]:
        """Return the pairs with a noticeable share of the noise, with it, the largest first.

        Where the runs do not suffice, only those are measured whose values rounding changes most.
        """
        affordable = int((self._most_runs - self._meter.runs) * _RANKING_SHARE)
        by_error = sorted(shared, key=self._measure_rounding, reverse=True)
        measured = by_error[: max(affordable, 1)]
        first = self._choosing[:1]
        noises = [self._meter.measure(pairs.scales_at(pairs.amax), first)[0] for pairs in measured]
        totals = np.maximum(np.sum(noises, axis=0), _TINY)
        shares = [float(np.mean(noise / totals)) for noise in noises]
        order = np.argsort(shares)[::-1]
        return [(shares[at], measured[at]) for at in order if shares[at] >= _LEAST_SHARE]

    def refine(self, pairs: SharedPairs, *, is_dominant: bool) -> None:
        """Try other ranges for some pairs, and keep the best one that both halves confirm."""
        candidates = list_candidates(pairs, self._ranges)
        choosing, confirming = len(self._choosing), len(self._confirming)
        least_runs = 3 * choosing + 2 * confirming
        if not candidates or self._meter.runs + least_runs > self._most_runs:
            return
        self.searched += 1
        present = self._meter.measure(pairs.scales_at(pairs.amax), self._choosing)
        best, chosen = self._choose(pairs, candidates, present, is_dominant=is_dominant)
        if best == pairs.amax or to_decibels(chosen) - to_decibels(present) < _LEAST_GAIN:
            return
        before = self._meter.measure(pairs.scales_at(pairs.amax), self._confirming)
        after = self._meter.measure(pairs.scales_at(best), self._confirming)
        if to_decibels(after) - to_decibels(before) < _LEAST_GAIN:
            return
        all_before = np.concatenate([present, before])
        all_after = np.concatenate([chosen, after])
        if is_significant(all_before, all_after, self._meter.log_variance):
            self._keep(pairs, best, to_decibels(all_before), to_decibels(all_after))

    def _choose(
        self, pairs: SharedPairs, candidates: list[float], present: Floats, *, is_dominant: bool
    ) -> tuple[float, Floats]:
        """Return the best range on one half, and its noise.

        The search goes down from the present range while that helps, else up. For pairs that make
        much of the noise all candidates are tried: values that repeat, such as those of a
        background, make their error uneven.
        """
        smaller = [amax for amax in candidates if amax < pairs.amax]
        larger = [amax for amax in candidates if amax > pairs.amax]
        best = (pairs.amax, present)
        if is_dominant:
            for amax in candidates:
                best = self._descend(pairs, [amax], best)
            return best
        best = self._descend(pairs, smaller[::-1], best)
        if best[0] == pairs.amax:
            best = self._descend(pairs, larger, best)
        return best

    def _descend(
        self, pairs: SharedPairs, steps: list[float], best: tuple[float, Floats]
    ) -> tuple[float, Floats]:
        """Return the last of some ranges up to which the noise decreases, and its noise."""
        reserve = len(self._choosing) + 2 * len(self._confirming)
        for amax in steps:
            if self._meter.runs + reserve > self._most_runs:
                break
            noise = self._meter.measure(pairs.scales_at(amax), self._choosing)
            if to_decibels(noise) <= to_decibels(best[1]):
                break
            best = (amax, noise)
        return best

    def _measure_rounding(self, pairs: SharedPairs) -> float:
        """Return the largest share of its energy that rounding changes in one of the tensors."""
        shares = [0.0]
        for tensor in pairs.tensors:
            histogram = self._ranges[tensor].histogram if tensor in self._ranges else None
            if histogram is not None:
                energy = max(histogram.mean_square(), _TINY)
                shares.append(histogram.error(pairs.amax, pairs.element) / energy)
        return max(shares)

    def _keep(self, pairs: SharedPairs, amax: float, snr_before: float, snr_after: float) -> None:
        largest: list[float] = []
        for tensor in pairs.tensors:
            item = self._ranges.get(tensor)
            largest.append(item.amax if item else 0.0)
        refined = RefinedRange(
            tensors=pairs.tensors,
            dtype=pairs.dtype,
            old_amax=pairs.amax,
            new_amax=amax,
            snr_before=snr_before,
            snr_after=snr_after,
            largest=tuple(largest),
        )
        self.refined[refined] = pairs


def is_significant(before: Floats, after: Floats, log_variance: float) -> bool:
    """Whether noise decreases in the samples by more than chance explains.

    `log_variance` is the variance of the logarithm of a sample's noise that is expected at least.
    Outputs of a few values have small or large errors by chance.
    """
    ratios = np.log(np.maximum(before, _TINY)) - np.log(np.maximum(after, _TINY))
    gains = ratios.mean(axis=1)
    variance = max(float(gains.var(ddof=1)), 2 * log_variance)
    return bool(gains.mean() > _LEAST_SIGNIFICANCE * math.sqrt(variance / len(gains)))


class _Confirmation:
    """Keeps the refined ranges that are better with all activations quantized, too."""

    def __init__(self, meter: ErrorMeter, scales: Mapping[PairKey, float], most_runs: int) -> None:
        self._meter = meter
        self._scales = dict(scales)
        self._most_runs = most_runs
        self.snr_before = self._measure(self._scales)
        self.snr_after = self.snr_before
        self.kept: list[RefinedRange] = []

    def add(self, refined: Mapping[RefinedRange, SharedPairs]) -> None:
        """Keep some ranges if they are better together; else try them one by one."""
        if len(self._meter) + self._meter.runs > self._most_runs:
            return
        scales = dict(self._scales)
        for item, pairs in refined.items():
            scales.update(pairs.scales_at(item.new_amax))
        snr = self._measure(scales)
        if snr > self.snr_after:
            self._scales = scales
            self.snr_after = snr
            self.kept.extend(refined)
        elif len(refined) > 1:
            for item, pairs in refined.items():
                self.add({item: pairs})

    def _measure(self, scales: Mapping[PairKey, float]) -> float:
        rows = range(len(self._meter))
        return to_decibels(self._meter.measure(scales, rows))


def apply_refinements(scales: Scales, refinements: RangeRefinements) -> Scales:
    """Return the scales with the refined ranges.

    Raises PlanError where they belong to another plan.
    """
    if refinements.plan != scales.plan:
        raise PlanError("the refined ranges are of another plan. Refine the ranges of this one.")
    refined: dict[tuple[str, str], RefinedRange] = {}
    for item in refinements.ranges:
        refined.update(dict.fromkeys(((tensor, item.dtype) for tensor in item.tensors), item))
    by_pair = tuple(_refine_pair(pair, refined) for pair in scales.by_pair)
    shared = tuple(_refine_shared(record, refined) for record in scales.shared)
    outliers = _list_outliers(scales, refinements)
    return msgspec.structs.replace(scales, by_pair=by_pair, shared=shared, outliers=outliers)


def _refine_pair(pair: PairScale, refined: Mapping[tuple[str, str], RefinedRange]) -> PairScale:
    quantizer = pair.quantizer
    item = refined.get((pair.tensor, quantizer.dtype))
    if item is None or not quantizer.calibrated:
        return pair
    scale = max(np.float32(item.new_amax / quantizer.element.largest), _LEAST_SCALE)
    return msgspec.structs.replace(pair, scales=(float(scale),))


def _refine_shared(
    record: SharedRange, refined: Mapping[tuple[str, str], RefinedRange]
) -> SharedRange:
    item = refined.get((record.tensor, record.dtype))
    return record if item is None else msgspec.structs.replace(record, amax=item.new_amax)


def _list_outliers(scales: Scales, refinements: RangeRefinements) -> tuple[OutlierTensor, ...]:
    """Return the tensors that reach so many times their range, the farthest first."""
    outliers = {outlier.tensor: outlier for outlier in scales.outliers}
    for item in refinements.ranges:
        for tensor, largest in zip(item.tensors, item.largest, strict=True):
            outliers.pop(tensor, None)
            if largest >= OUTLIER_RATIO * item.new_amax:
                outliers[tensor] = OutlierTensor(tensor, largest, item.new_amax)
    by_distance = sorted(outliers.values(), key=lambda outlier: outlier.clipped_at / outlier.amax)
    return tuple(by_distance)
