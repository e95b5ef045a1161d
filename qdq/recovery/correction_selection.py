"""The guard of bias correction: only corrections that improve the measured output stay."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
from onnx import ModelProto

from qdq.arrays import Floats
from qdq.recovery.bias_correction import (
    BiasCorrection,
    BiasCorrections,
    apply_bias_corrections,
)

#: Returns a number for a quantized model, or one for each sample; larger ones are better.
Measure = Callable[[ModelProto], float | Floats]

#: The least gain in units of the measure, such as dB.
LEAST_GAIN = 0.1

#: The least gain in standard errors, where the measure has a number for each sample. The class
#: scores of some networks vary so much that 16 samples show a gain of 1 dB by chance.
LEAST_ERRORS = 2.0

#: Models that a selection measures at most, with the one without corrections.
MOST_MEASUREMENTS = 6


class SelectedCorrections(msgspec.Struct, frozen=True):
    """The corrections that stay, and what they gain."""

    #: None of them where no correction helps.
    corrections: BiasCorrections
    #: The measure without corrections, and with those that stay.
    before: float
    after: float
    #: The number of models that were measured.
    measurements: int


def select_corrections(
    model: ModelProto,
    corrections: BiasCorrections,
    measure: Measure,
    *,
    least_gain: float = LEAST_GAIN,
    most_measurements: int = MOST_MEASUREMENTS,
) -> SelectedCorrections:
    """Return those corrections of a rewritten model that improve a measure.

    All of them stay where they gain at least `least_gain` together. Else their halves are measured,
    in the order of the graph, and the halves of those that do not help, down to single layers.
    Where `measure` returns a number for each sample, the mean gain must also be two standard errors
    of the samples' gains. `measure` should run samples that the corrections were not found with.
    """
    search = _Search(model, corrections, measure, least_gain, most_measurements)
    search.keep_helpful(corrections.layers)
    return SelectedCorrections(
        corrections=search.with_layers(search.kept),
        before=float(search.before.mean()),
        after=float(search.best.mean()),
        measurements=search.measurements,
    )


class _Search:
    """A bisection of corrections: those kept so far, and the measure with them."""

    def __init__(
        self,
        model: ModelProto,
        corrections: BiasCorrections,
        measure: Measure,
        least_gain: float,
        most_measurements: int,
    ) -> None:
        self._model = model
        self._corrections = corrections
        self._measure = measure
        self._least_gain = least_gain
        self._most_measurements = most_measurements
        self.kept: tuple[BiasCorrection, ...] = ()
        self.measurements = 1
        self.before = np.atleast_1d(measure(model))
        self.best = self.before

    def keep_helpful(self, layers: tuple[BiasCorrection, ...]) -> None:
        """Keep corrections where they help together, else those of the halves that do."""
        pending = [layers] if layers else []
        while pending and self.measurements < self._most_measurements:
            group = pending.pop(0)
            if not self._keep_group(group) and len(group) > 1:
                middle = len(group) // 2
                pending += [group[:middle], group[middle:]]

    def _keep_group(self, group: tuple[BiasCorrection, ...]) -> bool:
        layers = {correction.layer for correction in (*self.kept, *group)}
        candidates = [c for c in self._corrections.layers if c.layer in layers]
        candidate = self.with_layers(tuple(candidates))
        self.measurements += 1
        result = np.atleast_1d(self._measure(apply_bias_corrections(self._model, candidate)))
        if not self._is_gain(result - self.best):
            return False
        self.kept = candidate.layers
        self.best = result
        return True

    def _is_gain(self, gains: Floats) -> bool:
        """Whether the gains of the samples are large enough; NaN are not."""
        least_gain = self._least_gain
        if gains.size > 1:
            standard_error = float(gains.std(ddof=1)) / math.sqrt(gains.size)
            least_gain = max(least_gain, LEAST_ERRORS * standard_error)
        return bool(gains.mean() >= least_gain)

    def with_layers(self, layers: tuple[BiasCorrection, ...]) -> BiasCorrections:
        """Return the corrections of some layers."""
        return msgspec.structs.replace(self._corrections, layers=layers)
