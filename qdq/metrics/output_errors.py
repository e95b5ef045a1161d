"""Errors of outputs against those of the float model, summed over samples."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from qdq.arrays import Array, Floats

_TINY = 1e-30


class OutputError(msgspec.Struct, frozen=True):
    """The error of one output of the quantized model over all samples."""

    #: Name of the output.
    name: str
    #: Largest absolute difference.
    max_abs: float
    #: Mean absolute difference.
    mean_abs: float
    #: Cosine of the angle between the two outputs, all samples as one vector.
    cosine: float
    #: 10 log10 of the float output's energy over the error's, in dB.
    snr_db: float
    #: Share of rows whose largest entry is the same; None where the output has no class scores.
    top1_agreement: float | None = None
    #: Samples for which the two outputs have different shapes, as detections may. They are not in
    #: the other figures.
    shape_mismatches: int = 0


class EnergySums:
    """Running sums of the energies of one output and of its error."""

    def __init__(self) -> None:
        self.error_energy = 0.0
        self.expected_energy = 0.0
        #: Number of values.
        self.count = 0
        self.shape_mismatches = 0

    def add(self, expected: Array, actual: Array) -> None:
        """Add the output of one sample; one of another shape is only counted."""
        if expected.shape != actual.shape:
            self.shape_mismatches += 1
            return
        with np.errstate(over="ignore", invalid="ignore"):  # infinite outputs
            self._add_values(expected.astype(np.float64), actual.astype(np.float64))

    def _add_values(self, expected: Floats, actual: Floats) -> None:
        expected_values = expected.ravel()
        difference = expected_values - actual.ravel()
        self.error_energy += _sum_products(difference, difference)
        self.expected_energy += _sum_products(expected_values, expected_values)
        self.count += expected_values.size

    def merge(self, other: EnergySums) -> None:
        """Add the sums of other samples."""
        self.error_energy += other.error_energy
        self.expected_energy += other.expected_energy
        self.count += other.count
        self.shape_mismatches += other.shape_mismatches

    def snr_db(self) -> float:
        """Return the signal-to-noise ratio in dB, infinite without an error, NaN without values."""
        if not self.count:
            return math.nan
        if self.error_energy == 0.0:
            return math.inf
        return 10 * math.log10(max(self.expected_energy / self.error_energy, _TINY))


class ErrorSums(EnergySums):
    """Running sums of one output's errors."""

    def __init__(self, name: str, has_scores: bool) -> None:
        super().__init__()
        self.name = name
        self.has_scores = has_scores
        self.max_abs = 0.0
        self.sum_abs = 0.0
        self.dot = 0.0
        self.actual_energy = 0.0
        self.rows = 0
        self.agreeing_rows = 0

    def _add_values(self, expected: Floats, actual: Floats) -> None:
        super()._add_values(expected, actual)
        expected_values, actual_values = expected.ravel(), actual.ravel()
        difference = np.abs(expected_values - actual_values)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.sum_abs += float(difference.sum())
        self.dot += _sum_products(expected_values, actual_values)
        self.actual_energy += _sum_products(actual_values, actual_values)
        if self.has_scores and expected_values.size:
            rows = len(expected)
            self.rows += rows
            self.agreeing_rows += _count_agreeing_rows(expected_values, actual_values, rows)

    def result(self) -> OutputError:
        """Return the figures.

        They are NaN where no sample could be compared; the ratio is infinite where nothing differs.
        """
        if not self.count:
            return OutputError(
                self.name,
                max_abs=math.nan,
                mean_abs=math.nan,
                cosine=math.nan,
                snr_db=math.nan,
                shape_mismatches=self.shape_mismatches,
            )
        cosine = 1.0
        if self.error_energy != 0.0:
            norms = math.sqrt(self.expected_energy * self.actual_energy)
            cosine = self.dot / max(norms, _TINY)
        return OutputError(
            self.name,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / self.count,
            cosine=cosine,
            snr_db=self.snr_db(),
            top1_agreement=self.agreeing_rows / self.rows if self.rows else None,
            shape_mismatches=self.shape_mismatches,
        )


def _sum_products(first: Floats, second: Floats) -> float:
    """Return the scalar product of two vectors.

    BLAS would start threads for it, whose waiting takes more of the processor than the sum.
    """
    return float(np.einsum("i,i->", first, second))


def _count_agreeing_rows(expected: Floats, actual: Floats, rows: int) -> int:
    """Return in how many rows two outputs have the same largest entry."""
    expected_scores = expected.reshape(rows, -1)
    actual_scores = actual.reshape(rows, -1)
    agrees = expected_scores.argmax(1) == actual_scores.argmax(1)
    return int(agrees.sum())
