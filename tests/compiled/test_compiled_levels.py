"""The compiled search for the range of an activation finds the range of the one in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdq.quantizer import E4M3, ELEMENT_TYPES, INT4, INT8, ElementType
from qdq.ranges.histogram import Histogram, find_least_error_amax
from tests.support.compiled_path import calculating, needs_compiler

pytestmark = needs_compiler

ELEMENTS = st.sampled_from([ELEMENT_TYPES[dtype] for dtype in (INT8, E4M3, INT4)])


@st.composite
def _weighed_histograms(draw: st.DrawFn) -> list[tuple[float, Histogram]]:
    """Draw the histograms of one to four grades of channels, with their weights."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    weighed = []
    for grade in range(draw(st.integers(1, 4))):
        scale = np.float32(10.0 ** draw(st.integers(-6, 6)))
        values = random.standard_normal(draw(st.integers(0, 5000))).astype(np.float32) * scale
        if draw(st.booleans()):
            values = np.maximum(values, 0)
        histogram = Histogram()
        histogram.add(values)
        weighed.append((4.0**-grade, histogram))
    return weighed


@settings(max_examples=60, deadline=None)
@given(_weighed_histograms(), ELEMENTS)
def test_the_range_is_the_same(
    weighed: list[tuple[float, Histogram]], element: ElementType
) -> None:
    ranges = []
    for path in ("numpy", "compiled"):
        with calculating(path):
            ranges.append(find_least_error_amax(weighed, element))

    assert ranges[1] == ranges[0]


@pytest.mark.parametrize("values", [[], [0.0], [1.0], [1e-30, 3e38], [2.0**12, 2.0**-12]])
def test_the_range_of_a_few_values_is_the_same(values: list[float]) -> None:
    ranges = []
    for path in ("numpy", "compiled"):
        histogram = Histogram()
        histogram.add(np.array(values, np.float32))
        with calculating(path):
            ranges.append(histogram.least_error(ELEMENT_TYPES[INT8]))

    assert ranges[1] == ranges[0]
