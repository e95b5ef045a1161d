"""The signal-to-noise ratio at the outputs of quantized copies of one model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from qdq.arrays import Array, Feed
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.runtime.devices import CPU
from qdq.runtime.session import exact_options, open_partial_session, run_outputs
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators

#: The ratio of an output without any error, in dB: more than float32 can resolve.
_MOST_DB = 150.0


class OutputSnr:
    """Measures quantized copies of a model; the float outputs are computed once.

    An instance is a measure for `select_corrections`: it returns the mean over the model's float
    outputs of 10 log10(energy / energy of the error) over all samples, in dB.
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

    def __call__(self, model: ModelProto) -> float:
        """Return the ratio of a quantized copy in dB; NaN where no output can be compared."""
        if not self.outputs or not self._samples:
            return math.nan
        ratios = []
        for name, expected, actual in zip(
            self.outputs, zip(*self._expected, strict=True), zip(*self._run(model), strict=True),
            strict=True,
        ):
            ratios.append(_ratio(expected, actual))
        return float(np.mean(ratios))

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


def _ratio(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """Return the ratio of one output in dB; -inf where sizes or numbers are missing."""
    signal = 0.0
    noise = 0.0
    for expected_values, actual_values in zip(expected, actual, strict=True):
        if expected_values.shape != actual_values.shape:
            return -math.inf
        values = expected_values.astype(np.float64)
        signal += float(np.square(values).sum())
        noise += float(np.square(values - actual_values).sum())
    if not math.isfinite(noise):
        return -math.inf
    if noise == 0.0:
        return _MOST_DB
    if signal == 0.0:
        return -_MOST_DB
    return min(10 * math.log10(signal / noise), _MOST_DB)
