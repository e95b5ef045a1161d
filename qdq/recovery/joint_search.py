"""The search for ranges by the noise at the outputs with all activations quantized.

Where a value repeats throughout a tensor, as padding and backgrounds do, its rounding error does
too, and does not average out. A small change of a range, there or before, replaces that error by
another. Only a measurement of the whole quantized model shows which is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping

from qdq.arrays import Floats
from qdq.ranges.tensor_ranges import Ranges
from qdq.recovery.range_candidates import SharedPairs
from qdq.recovery.refined_range import (
    RefinedRange,
    halve_samples,
    is_better,
    is_significant,
    list_largest,
)
from qdq.recovery.scaled_session import ErrorMeter, PairKey, to_decibels

#: Factors of the present range that are tried, until one is better: they change the roundings, and
#: clip and round little more.
_FACTORS = (0.92, 1.09, 0.84)


class JointSearch:
    """Keeps the ranges that are better together, and searches small changes."""

    def __init__(
        self, meter: ErrorMeter, ranges: Ranges, scales: Mapping[PairKey, float], most_runs: int
    ) -> None:
        self._meter = meter
        self._ranges = {item.tensor: item for item in ranges.by_tensor}
        self._scales = dict(scales)
        self._most_runs = most_runs
        self._choosing, self._confirming = halve_samples(len(meter))
        self._noise = meter.measure(scales, range(len(meter)))
        #: The signal-to-noise ratio in dB with the ranges that were passed.
        self.snr_before = to_decibels(self._noise)
        #: The ranges that are kept, by their pairs.
        self.refined: dict[tuple[PairKey, ...], RefinedRange] = {}

    @property
    def snr_after(self) -> float:
        """The signal-to-noise ratio in dB with the ranges so far."""
        return to_decibels(self._noise)

    def add(self, refined: Mapping[RefinedRange, SharedPairs]) -> None:
        """Keep some ranges if they are better together; else try them one by one."""
        if not refined or not self._can_run(len(self._meter)):
            return
        scales = dict(self._scales)
        for item, pairs in refined.items():
            scales.update(pairs.scales_at(item.new_amax))
        noise = self._meter.measure(scales, range(len(self._meter)))
        if to_decibels(noise) > self.snr_after:
            self._scales, self._noise = scales, noise
            for item, pairs in refined.items():
                self.refined[pairs.keys] = item
        elif len(refined) > 1:
            for item, pairs in refined.items():
                self.add({item: pairs})

    def refine(self, pairs: SharedPairs) -> None:
        """Change a range a little if both halves of the samples confirm that it helps."""
        present = self._scales[pairs.keys[0]] * pairs.element.largest
        largest = max(list_largest(pairs, self._ranges)) * pairs.element.headroom
        for factor in _FACTORS:
            amax = present * factor
            if factor > 1.0 and amax > largest:
                continue
            if not self._can_run(len(self._meter)) or self._try(pairs, amax):
                return

    def _try(self, pairs: SharedPairs, amax: float) -> bool:
        """Return whether a range is better, and keep it then."""
        scales = {**self._scales, **pairs.scales_at(amax)}
        noise = self._noise.copy()
        for half in (self._choosing, self._confirming):
            noise[half] = self._meter.measure(scales, half)
            if not is_better(self._noise[half], noise[half]):
                return False
        if not is_significant(self._noise, noise, self._meter.log_variance):
            return False
        self._keep(pairs, amax, noise)
        self._scales, self._noise = scales, noise
        return True

    def _keep(self, pairs: SharedPairs, amax: float, noise: Floats) -> None:
        """Record a range that replaces the present one."""
        self.refined[pairs.keys] = RefinedRange(
            tensors=pairs.tensors,
            dtype=pairs.dtype,
            old_amax=pairs.amax,
            new_amax=amax,
            snr_before=self.snr_after,
            snr_after=to_decibels(noise),
            largest=list_largest(pairs, self._ranges),
            together=True,
        )

    def _can_run(self, samples: int) -> bool:
        return self._meter.runs + samples <= self._most_runs
