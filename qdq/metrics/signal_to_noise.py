"""The metric ``snr``: the signal-to-noise ratio of the outputs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from qdq.metrics.metric import Metric, MetricItem, RunningScore, find_output, no_items_error
from qdq.metrics.output_errors import EnergySums

SNR = "snr"

#: The range of one output's ratio in dB. Without an upper limit an output without an error, as of
#: a branch in float, would hide all others; 100 dB is less than the rounding of float32.
MOST_SNR_DB = 100.0
LEAST_SNR_DB = -100.0

#: Kinds of numpy's types that hold numbers.
_NUMBERS = "biuf"


@dataclass(frozen=True)
class SignalToNoise(Metric):
    """The mean over outputs of the signal-to-noise ratio in dB over all samples.

    The ratio of each output is limited to -100 and 100 dB, so that no output hides the others. An
    output that cannot be compared, of another shape or with NaN, counts as -100 dB.
    """

    name: str = SNR
    scores_float_model: bool = False

    def start(self) -> RunningScore:
        """Return the score of no items."""
        return _RunningRatios()


class _RunningRatios(RunningScore):
    basis = "float outputs"

    def __init__(self) -> None:
        self._sums: dict[str, EnergySums] = {}

    def add(self, item: MetricItem) -> None:
        for name, expected in item.float_outputs.items():
            if not _holds_numbers(expected):
                continue
            sums = self._sums.setdefault(name, EnergySums())
            with np.errstate(invalid="ignore", over="ignore"):
                sums.add(expected, find_output(SNR, item, name))

    def result(self) -> float:
        if not self._sums:
            raise no_items_error(SNR)
        return statistics.fmean(_limit(sums.snr_db()) for sums in self._sums.values())


def _holds_numbers(values: object) -> bool:
    """Whether an output is an array of numbers, and no sequence or text."""
    return isinstance(values, np.ndarray) and values.dtype.kind in _NUMBERS


def _limit(snr_db: float) -> float:
    if not snr_db >= LEAST_SNR_DB:  # also where the ratio is NaN
        return LEAST_SNR_DB
    return min(snr_db, MOST_SNR_DB)
