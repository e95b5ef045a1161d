"""Noise at the outputs: how much of them is the error of quantization.

The noise of an output is the energy of its error over the energy of the float output, over all
samples. The noise of a model is the mean of its outputs' noise, so that an output of large values
does not hide the others. -10 log10 of it is the signal-to-noise ratio in dB. Errors of different
layers are nearly uncorrelated, and their noise nearly adds up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np

from qdq.arrays import Array

#: An output is all noise: the energy of its error is that of the output, or beyond.
_LARGEST_NOISE = 1e3

_LEAST_NOISE = 1e-30


def to_decibels(noise: float) -> float:
    """Return the signal-to-noise ratio in dB of some noise; infinite for none."""
    return math.inf if noise <= 0.0 else -10.0 * math.log10(max(noise, _LEAST_NOISE))


def to_gain(before: float, after: float) -> float:
    """Return by how many dB noise is lowered; it is finite where nothing remains, too."""
    return 10.0 * math.log10(max(before, _LEAST_NOISE) / max(after, _LEAST_NOISE))


class NoiseReference:
    """A tensor of the float model for one sample, with which others are compared."""

    def __init__(self, values: Array) -> None:
        """Keep the values; integers are not compared, and values that are not finite left out."""
        self._shape = values.shape
        self._is_compared = values.dtype.kind == "f"
        self._values = _to_floats(values)
        is_finite = np.isfinite(self._values)
        self._is_finite = None if is_finite.all() else is_finite
        self._energy = _sum_squares(self._keep_finite(self._values))

    def measure(self, actual: Array) -> NoiseSums:
        """Return the energies of the tensor and of the error of other values for it."""
        if not self._is_compared or actual.shape != self._shape:
            return NoiseSums()
        difference = self._keep_finite(_to_floats(actual)) - self._keep_finite(self._values)
        return NoiseSums(_sum_squares(difference), self._energy)

    def _keep_finite(self, values: Array) -> Array:
        return values if self._is_finite is None else values[self._is_finite]


class NoiseSums(msgspec.Struct, frozen=True):
    """The energies of a tensor and of its error, over some samples."""

    error: float = 0.0
    expected: float = 0.0

    def add(self, other: NoiseSums) -> NoiseSums:
        """Return the sums over the samples of both."""
        return NoiseSums(self.error + other.error, self.expected + other.expected)


def mean_noise(tensors: Iterable[NoiseSums]) -> float:
    """Return the mean of the noise of tensors; 0.0 where nothing can be compared."""
    ratios: list[float] = []
    for sums in tensors:
        if sums.expected > 0.0:
            ratio = sums.error / sums.expected
            ratios.append(_LARGEST_NOISE if math.isnan(ratio) else min(ratio, _LARGEST_NOISE))
    return sum(ratios) / len(ratios) if ratios else 0.0


def _to_floats(values: Array) -> Array:
    """Return flat values in float32, in float64 where they have it."""
    exact = values if values.dtype == np.float64 else values.astype(np.float32)
    return exact.ravel()


def _sum_squares(values: Array) -> float:
    """Return the sum of squares without BLAS, whose threads would wait for each other."""
    return float(np.einsum("i,i->", values, values, dtype=np.float64))
