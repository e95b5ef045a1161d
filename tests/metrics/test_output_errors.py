"""Errors of outputs against those of the float model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qdq.metrics.output_errors import EnergySums, ErrorSums


@pytest.mark.filterwarnings("error")
def test_infinite_outputs_are_summed_without_a_warning() -> None:
    sums = ErrorSums("y", has_scores=False)
    sums.add(np.array([np.inf, 0.0, 3e38], np.float32), np.array([0.0, np.inf, -3e38], np.float32))
    assert not math.isfinite(sums.result().max_abs)


def test_sums_of_parts_are_those_of_the_whole() -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((4, 3, 5)).astype(np.float32)
    actual = expected + generator.standard_normal((4, 3, 5)).astype(np.float32)
    whole, first, second = EnergySums(), EnergySums(), EnergySums()
    for i, (reference, values) in enumerate(zip(expected, actual, strict=True)):
        whole.add(reference, values)
        (first if i < 2 else second).add(reference, values)
    first.merge(second)
    assert first.snr_db() == pytest.approx(whole.snr_db())
    assert first.count == whole.count
