"""The compiled search for weight scales makes the choices of the one in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdq.calibration.weight_scales import least_error_amax, least_shift_amax
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT4, INT8
from tests.support.compiled_path import calculating, needs_compiler

pytestmark = needs_compiler

_PATHS = ("numpy", "compiled", "portable")


@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.tuples(st.integers(1, 6), st.integers(1, 12), st.sampled_from([1, 3, 9, 49, 400])),
    st.integers(-44, 37),
    st.sampled_from([INT4, INT8, E4M3]),
    st.integers(0, 1 << 30),
)
def test_scales_are_the_same(
    groups: int, shape: tuple[int, int, int], power: int, element: str, seed: int
) -> None:
    outputs, inputs, taps = shape
    random = np.random.default_rng(seed)
    weight = random.standard_normal((groups * outputs, inputs, taps)) * 10.0**power
    weight = weight.astype(np.float32)
    weight[random.random(weight.shape) < 0.2] = 0.0
    mean = random.standard_normal(groups * inputs)
    variance = random.random(groups * inputs)
    results = []
    for path in _PATHS:
        with calculating(path):
            element_type = ELEMENT_TYPES[element]
            shift = least_shift_amax(weight, mean, variance, groups, element_type)
            error = least_error_amax(weight, 0, element_type)
            whole = least_error_amax(weight, None, element_type)
            results.append((shift.tobytes(), error.tobytes(), whole.tobytes()))

    assert results[1] == results[0]
    assert results[2] == results[0]


@pytest.mark.parametrize("width", [1023, 1025, 70000, (1 << 20) + 7])
def test_rows_of_any_length_are_the_same(width: int) -> None:
    """Also such that are calculated in several blocks, and with the coarse candidates."""
    rows = np.random.default_rng(width).standard_normal((2, width, 1)).astype(np.float32)
    ones = np.ones(width)
    results = []
    for path in _PATHS:
        with calculating(path):
            results.append(least_shift_amax(rows, ones, ones).tobytes())

    assert results[1] == results[0]
    assert results[2] == results[0]


@pytest.mark.parametrize("value", [0.0, 1e-45, 3.4028235e38, np.inf, np.nan])
@pytest.mark.parametrize("element", [INT4, INT8, E4M3])
def test_weights_at_the_limits_are_the_same(value: float, element: str) -> None:
    weight = np.ones((2, 5, 1), np.float32)
    weight[1] = value
    results = []
    for path in _PATHS:
        with calculating(path):
            element_type = ELEMENT_TYPES[element]
            results.append(least_shift_amax(weight, np.ones(5), np.ones(5), 1, element_type))

    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_the_transposed_axis_is_the_same() -> None:
    weight = np.random.default_rng(1).standard_normal((30, 20)).astype(np.float32)
    results = []
    for path in _PATHS:
        with calculating(path):
            results.append(least_error_amax(weight, 1).tobytes())

    assert results[1] == results[0]
    assert results[2] == results[0]
