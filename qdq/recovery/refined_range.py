"""A range that another one replaces, and when a gain is large enough for that."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from qdq.arrays import Floats
from qdq.ranges.tensor_ranges import TensorRange
from qdq.recovery.range_candidates import SharedPairs
from qdq.recovery.scaled_session import to_decibels

#: A range is only replaced for at least this gain, in dB, in each half of the samples.
_LEAST_GAIN = 0.3

#: The gain of the samples must be this many times its standard error, as the samples show it, and
#: as outputs of a few values let expect.
_LEAST_SIGNIFICANCE = 2.0
_LEAST_EXPECTED_SIGNIFICANCE = 3.0

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
    #: The signal-to-noise ratio at the outputs in dB, with each of the two ranges.
    snr_before: float
    snr_after: float
    #: The largest absolute value observed in each of the tensors.
    largest: tuple[float, ...]
    #: Whether all activations were quantized when the ratios were measured; else these alone.
    together: bool = False

    @property
    def gain(self) -> float:
        """The gain in dB."""
        return self.snr_after - self.snr_before


def list_largest(pairs: SharedPairs, ranges: Mapping[str, TensorRange]) -> tuple[float, ...]:
    """Return the largest absolute value observed in each tensor of some pairs, 0 for none."""
    largest: list[float] = []
    for tensor in pairs.tensors:
        item = ranges.get(tensor)
        largest.append(item.amax if item else 0.0)
    return tuple(largest)


def halve_samples(count: int) -> tuple[range, range]:
    """Return the samples that choose a range, and those that confirm it."""
    samples = range(count)
    return samples[::2], samples[1::2]


def is_better(before: Floats, after: Floats) -> bool:
    """Whether the noise of one half of the samples decreases noticeably."""
    return to_decibels(after) - to_decibels(before) >= _LEAST_GAIN


def is_significant(before: Floats, after: Floats, log_variance: float) -> bool:
    """Whether noise decreases in the samples by more than chance explains.

    `log_variance` is the variance of the logarithm of a sample's noise that is expected at least.
    Outputs of a few values have small or large errors by chance.
    """
    ratios = np.log(np.maximum(before, _TINY)) - np.log(np.maximum(after, _TINY))
    gains = ratios.mean(axis=1)
    samples = len(gains)
    error = math.sqrt(float(gains.var(ddof=1)) / samples)
    expected_error = math.sqrt(2 * log_variance / samples)
    least = max(_LEAST_SIGNIFICANCE * error, _LEAST_EXPECTED_SIGNIFICANCE * expected_error)
    return bool(gains.mean() > least)
