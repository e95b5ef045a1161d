"""The INT8 noise that a layer adds to its outputs, predicted for factors of its input channels.

Rounding to a step adds an independent error of step**2 / 12 (Widrow and Kollar, Quantization Noise,
2008). An error of an input channel reaches the outputs by the squares of its weights, one of a
weight by the mean square of its input channel.
"""

from __future__ import annotations

import numpy as np

from qdq.arrays import Array, Floats
from qdq.recovery.channel_layout import Channels
from qdq.recovery.channel_statistics import ChannelStatistics

#: The largest integer of symmetric INT8.
_LARGEST_INTEGER = 127
_ROUNDING_VARIANCE = 1 / 12


class LayerNoise:
    """Predicts the noise of a layer with one scale of its input, and one per output channel."""

    def __init__(self, weight: Array, classes: Channels, statistics: ChannelStatistics) -> None:
        """`weight` is [groups, output channels, input channels, taps], of each group.

        `classes` has the class of each input channel, counted from 0.
        """
        self.classes = classes
        self.amax = statistics.amax
        self.mean_square = statistics.mean_square
        groups, _, inputs, taps = weight.shape
        magnitudes = np.abs(weight)
        #: The largest weights, as [groups, output channels, input channels].
        self._largest = magnitudes.max(axis=3, initial=0.0)
        self._scaled = np.empty_like(self._largest)
        squares = np.einsum("goit,goit->gi", weight, weight, dtype=np.float64)
        self._squares: Floats = squares.reshape(groups * inputs)
        self._groups = groups
        self._taps = taps
        #: The mean square of the layer's outputs, where its inputs are independent.
        self._signal = float(self._squares @ self.mean_square)

    @property
    def largest_weights(self) -> Floats:
        """The largest weight of each input channel."""
        by_group = self._largest.max(axis=1, initial=0.0)
        largest: Floats = by_group.ravel().astype(np.float64)
        return largest

    def predict(self, exponents: Array) -> float:
        """Return the noise relative to the outputs, for inputs that are multiplied by 2**exponent.

        `exponents` has one entry per class.
        """
        factors: Floats = np.ldexp(1.0, exponents[self.classes])
        noise: float = self._predict_rounding(factors) + self._predict_weights(factors)
        if self._signal <= 0.0:
            return 0.0
        return noise / self._signal

    def _predict_rounding(self, factors: Floats) -> float:
        """Return the noise from rounding the input, at most its mean square in each channel."""
        step = float(np.max(self.amax * factors, initial=0.0)) / _LARGEST_INTEGER
        variance = _ROUNDING_VARIANCE * (step / factors) ** 2
        return float(self._squares @ np.minimum(variance, self.mean_square))

    def _predict_weights(self, factors: Floats) -> float:
        # factors are powers of two: to multiply by their reciprocals is as exact, and faster
        reciprocals = (1.0 / factors).astype(self._largest.dtype).reshape(self._groups, 1, -1)
        np.multiply(self._largest, reciprocals, out=self._scaled)
        largest = self._scaled.max(axis=2, initial=0.0).astype(np.float64)
        steps = largest / _LARGEST_INTEGER
        variance = _ROUNDING_VARIANCE * (steps**2).sum(axis=1)
        energy = self.mean_square * factors**2
        energy_by_group = energy.reshape(self._groups, -1).sum(axis=1)
        noise: float = float(variance @ energy_by_group) * self._taps
        return noise
