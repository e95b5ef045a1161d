"""Noise at the outputs: how much of them is the error of quantization.

The noise of an output is the energy of its error over the energy of the float output, over all
samples. The noise of a model is the mean of its outputs' noise, so that an output of large values
does not hide the others. -10 log10 of it is the signal-to-noise ratio in dB. Errors of different
layers are nearly uncorrelated, and their noise nearly adds up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qdq.arrays import Array

#: An output is all noise: the energy of its error is that of the output, or beyond.
_LARGEST_NOISE = 1e3

_LEAST_NOISE = 1e-30


def to_decibels(noise: float) -> float:
    """Return the signal-to-noise ratio in dB of some noise; infinite for none."""
    return math.inf if noise <= 0.0 else -10.0 * math.log10(max(noise, _LEAST_NOISE))


class OutputNoise:
    """Running sums of the energies of outputs and of their errors."""

    def __init__(self, count: int) -> None:
        """Start with no samples of `count` outputs."""
        self._signal = [0.0] * count
        self._error = [0.0] * count

    def add(self, expected: Sequence[Array], actual: Sequence[Array]) -> None:
        """Add the outputs of a sample; outputs of integers, or of another shape, are left out."""
        for i, (float_output, output) in enumerate(zip(expected, actual, strict=True)):
            if float_output.dtype.kind != "f" or float_output.shape != output.shape:
                continue
            reference = float_output.astype(np.float64).ravel()
            is_finite = np.isfinite(reference)
            reference = np.where(is_finite, reference, 0.0)
            difference = np.where(is_finite, output.astype(np.float64).ravel() - reference, 0.0)
            self._signal[i] += float(reference @ reference)
            self._error[i] += float(difference @ difference)

    def merge(self, other: OutputNoise) -> None:
        """Add the sums of other samples."""
        for i, (signal, error) in enumerate(zip(other._signal, other._error, strict=True)):
            self._signal[i] += signal
            self._error[i] += error

    def mean(self) -> float:
        """Return the mean of the outputs' noise; 0.0 where nothing can be compared."""
        ratios: list[float] = []
        for signal, error in zip(self._signal, self._error, strict=True):
            if signal > 0.0:
                ratio = error / signal if math.isfinite(error) else _LARGEST_NOISE
                ratios.append(min(ratio, _LARGEST_NOISE))
        return sum(ratios) / len(ratios) if ratios else 0.0
