"""Noise at the outputs: how much of them is the error of quantization.

The noise of an output is the energy of its error over the energy of the float output, over all
samples. The noise of a model is the mean of its outputs' noise, so that an output of large values
does not hide the others. -10 log10 of it is the signal-to-noise ratio in dB. Errors of different
layers are nearly uncorrelated, and their noise nearly adds up.
"""

from __future__ import annotations

import math

import numpy as np

from qdq.arrays import Array
from qdq.metrics.output_errors import EnergySums

#: An output is all noise: the energy of its error is that of the output, or beyond.
_LARGEST_NOISE = 1e3

_LEAST_NOISE = 1e-30


def to_decibels(noise: float) -> float:
    """Return the signal-to-noise ratio in dB of some noise; infinite for none."""
    return math.inf if noise <= 0.0 else -10.0 * math.log10(max(noise, _LEAST_NOISE))


class OutputNoise:
    """Running sums of the energies of tensors and of their errors."""

    def __init__(self) -> None:
        self._sums: dict[str, EnergySums] = {}

    def add(self, name: str, expected: Array, actual: Array) -> None:
        """Add a tensor of a sample; integers, and values that are not finite, are left out."""
        if expected.dtype.kind != "f":
            return
        if expected.shape == actual.shape:
            is_finite = np.isfinite(expected)
            expected = np.where(is_finite, expected, 0)
            actual = np.where(is_finite, actual, 0)
        self._sums.setdefault(name, EnergySums()).add(expected, actual)

    def merge(self, other: OutputNoise) -> None:
        """Add the sums of other samples."""
        for name, sums in other._sums.items():
            self._sums.setdefault(name, EnergySums()).merge(sums)

    def mean(self) -> float:
        """Return the mean of the tensors' noise; 0.0 where nothing can be compared."""
        ratios: list[float] = []
        for sums in self._sums.values():
            if sums.expected_energy > 0.0:
                ratio = sums.error_energy / sums.expected_energy
                ratios.append(_LARGEST_NOISE if math.isnan(ratio) else min(ratio, _LARGEST_NOISE))
        return sum(ratios) / len(ratios) if ratios else 0.0
