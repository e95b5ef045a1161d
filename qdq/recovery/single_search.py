"""The search for ranges by the noise at the outputs with only one tensor quantized.

A method chooses a range by the error in the tensor or in the layers that read it. What such an
error does to the outputs is another matter: transformers hold a few enormous values whose
clipping changes nothing (Sun et al. 2024, Massive Activations in Large Language Models,
arXiv:2402.17762). The noise of one tensor shows that with few samples, where the noise of all of
them varies by decibels from one rounding to another. The search goes from one candidate to its
neighbour, tensor by tensor, as in the coordinate steps of LAPQ (Nahshan et al. 2019,
arXiv:1911.07190).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qdq.arrays import Floats
from qdq.ranges.tensor_ranges import Ranges
from qdq.recovery.range_candidates import SharedPairs, list_candidates
from qdq.recovery.refined_range import (
    RefinedRange,
    halve_samples,
    is_better,
    is_significant,
    list_largest,
)
from qdq.recovery.scaled_session import ErrorMeter, to_decibels

#: Tensors with a smaller share of the noise are not searched.
_LEAST_SHARE = 0.02

#: Of tensors with this share all candidates are tried.
_DOMINANT_SHARE = 0.15

#: The part of the runs that may be spent on ranking the tensors.
_RANKING_SHARE = 0.5

_TINY = 1e-30


class SingleSearch:
    """Searches other ranges with only one tensor quantized, until the runs are used up."""

    def __init__(self, meter: ErrorMeter, ranges: Ranges, most_runs: int) -> None:
        self._meter = meter
        self._ranges = {item.tensor: item for item in ranges.by_tensor}
        self._most_runs = most_runs
        self._choosing, self._confirming = halve_samples(len(meter))
        self.refined: dict[RefinedRange, SharedPairs] = {}

    def rank(self, shared: Sequence[SharedPairs]) -> list[tuple[float, SharedPairs]]:
        """Return the pairs with their shares of the noise, the largest first.

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
        return [(shares[at], measured[at]) for at in order]

    def refine(self, share: float, pairs: SharedPairs) -> None:
        """Try other ranges for some pairs, and keep the best one that both halves confirm."""
        candidates = list_candidates(pairs, self._ranges)
        choosing, confirming = len(self._choosing), len(self._confirming)
        least_runs = 3 * choosing + 2 * confirming
        if share < _LEAST_SHARE or not candidates:
            return
        if self._meter.runs + least_runs > self._most_runs:
            return
        present = self._meter.measure(pairs.scales_at(pairs.amax), self._choosing)
        best, chosen = self._choose(
            pairs, candidates, present, is_dominant=share >= _DOMINANT_SHARE
        )
        if not is_better(present, chosen):
            return
        before = self._meter.measure(pairs.scales_at(pairs.amax), self._confirming)
        after = self._meter.measure(pairs.scales_at(best), self._confirming)
        if not is_better(before, after):
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
        refined = RefinedRange(
            tensors=pairs.tensors,
            dtype=pairs.dtype,
            old_amax=pairs.amax,
            new_amax=amax,
            snr_before=snr_before,
            snr_after=snr_after,
            largest=list_largest(pairs, self._ranges),
        )
        self.refined[refined] = pairs
