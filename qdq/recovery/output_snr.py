"""The signal-to-noise ratio at the outputs of quantized copies of one model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from qdq.arrays import Array, Feed, Floats
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.runtime.devices import CPU
from qdq.runtime.session import exact_options, open_partial_session, run_outputs
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators

#: The ratio of an output without any error, in dB: more than float32 can resolve.
_MOST_DB = 150.0


class OutputSnr:
    """Measures quantized copies of a model; the float outputs are computed once.

    The ratio of an output is 10 log10(energy / energy of the error), in dB. A model's is the mean
    over its float outputs.
    """

    def __init__(
        self,
        index: GraphIndex,
        samples: Iterable[Feed],
        providers: Sequence[str] = CPU,
        libraries: Sequence[Path] = (),
    ) -> None:
        self._index = index
        self._samples = list(samples)
        self._providers = providers
        self._libraries = libraries
        unknown = find_unknown_operators(index.source.model, libraries)
        computed = find_computed_outputs(index, unknown).outputs
        #: The outputs that are compared.
        self.outputs = [name for name in computed if index.is_float(name)]
        self._expected = self._run(index.source.model)

    def measure(self, model: ModelProto) -> float:
        """Return the ratio over all samples; NaN where no output can be compared."""
        signal, noise = self._energies(model)
        ratios = _to_decibels(signal.sum(0), noise.sum(0))
        return float(ratios.mean()) if ratios.size else math.nan

    def measure_samples(self, model: ModelProto) -> Floats:
        """Return the ratio of each sample; NaN where no output can be compared."""
        signal, noise = self._energies(model)
        if not self.outputs:
            return np.full(len(signal), math.nan)
        ratios: Floats = _to_decibels(signal, noise).mean(axis=1)
        return ratios

    def _energies(self, model: ModelProto) -> tuple[Floats, Floats]:
        """Return the energies of the float outputs and of the errors: [samples, outputs]."""
        signal = np.zeros((len(self._samples), len(self.outputs)))
        noise = np.zeros_like(signal)
        for row, actual_outputs in enumerate(self._run(model)):
            for column, actual in enumerate(actual_outputs):
                expected = self._expected[row][column].astype(np.float64)
                signal[row, column] = np.square(expected).sum()
                noise[row, column] = _error_energy(expected, actual)
        return signal, noise

    def _run(self, model: ModelProto) -> list[list[Array]]:
        """Return the outputs of each sample."""
        if not self.outputs:
            return []
        source = self._index.source
        index = GraphIndex(Source(source.path, model, source.digest))
        session = open_partial_session(
            index, self.outputs, exact_options(), self._providers, self._libraries
        )
        return [run_outputs(session, index, self.outputs, feed) for feed in self._samples]


def _error_energy(expected: Array, actual: Array) -> float:
    """Return the energy of an output's error; infinite for other shapes and missing numbers."""
    if expected.shape != actual.shape:
        return math.inf
    energy = float(np.square(expected - actual).sum())
    return energy if math.isfinite(energy) else math.inf


def _to_decibels(signal: Floats, noise: Floats) -> Floats:
    """Return ratios in dB, within what float32 can resolve."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = 10 * np.log10(signal / noise)
    exact = np.where(noise == 0.0, _MOST_DB, ratios)
    decibels: Floats = np.clip(exact, -_MOST_DB, _MOST_DB)
    return decibels
