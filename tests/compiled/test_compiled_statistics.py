"""The compiled statistics of tensors have the bytes of those in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qdq.errors import DataError
from qdq.observers.tensor_statistics import ObservedTensor, TensorStatistics
from qdq.ranges.channel_importance import ChannelGrades
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import BINS, Histogram
from tests.support.compiled_path import calculating, needs_compiler

Array = npt.NDArray[Any]

pytestmark = needs_compiler

#: Values with a meaning of their own: zeros, denormals, the least and the largest, powers of two.
_SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.1754944e-38, -1.0, 1.0, 2.0, 1.9999999, 3.4028235e38],
    np.float32,
)
_LONGEST = 1 << 20


@st.composite
def _tensors(draw: st.DrawFn) -> tuple[list[Array], int | None, ChannelGrades | None]:
    """Draw a few samples of one tensor, the axis of its channels, and their grades."""
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16, np.float64]))
    seed = draw(st.integers(0, 1 << 30))
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(draw(st.integers(1, 3))):
        scale = 10.0 ** draw(st.integers(-44, 36) if dtype != np.float16 else st.integers(-8, 3))
        values = random.standard_normal(shape) * scale
        values[random.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0.0
        is_special = random.random(shape) < draw(st.sampled_from([0.0, 0.1]))
        with np.errstate(over="ignore"):
            special = random.choice(_SPECIAL, shape).astype(dtype)
        values = np.where(is_special & np.isfinite(special), special, values.astype(dtype))
        samples.append(values)
    axis = draw(st.one_of(st.none(), st.integers(0, len(shape) - 1)))
    graded_axis = draw(st.integers(0, len(shape) - 1)) if draw(st.booleans()) else axis
    grades = None
    if graded_axis is not None and draw(st.booleans()):
        of_channel = random.integers(0, 12, shape[graded_axis])
        grades = ChannelGrades(graded_axis, tuple(map(int, of_channel)))
    return samples, axis, grades


def _observe(
    samples: list[Array], axis: int | None, grades: ChannelGrades | None, histogram: bool = True
) -> tuple[object, ...]:
    """Return everything that is known of a tensor after some samples, as bytes."""
    statistics = TensorStatistics(
        ObservedTensor("t", ("", "t"), histogram, axis, grades), is_flat=False
    )
    for values in samples:
        sample = statistics.measure(values)
        if sample is not None:
            statistics.add(sample, "sample")
    result = statistics.to_range("t")
    moments = result.moments
    return (
        result.amax,
        result.filled,
        result.moments_lost,
        result.histogram.to_bytes() if result.histogram else None,
        tuple((grade, histogram.to_bytes()) for grade, histogram in result.by_grade),
        (moments.count, moments.sums.to_bytes(), moments.squares.to_bytes()) if moments else None,
    )


def _assert_same(*tensor: Any) -> None:
    results = []
    for path in ("numpy", "compiled", "portable"):
        with calculating(path):
            results.append(_observe(*tensor))
    assert results[1] == results[0]
    assert results[2] == results[0]


@settings(max_examples=120)
@given(_tensors(), st.booleans())
def test_statistics_are_the_same(
    tensor: tuple[list[Array], int | None, ChannelGrades | None], histogram: bool
) -> None:
    _assert_same(*tensor, histogram)


@pytest.mark.parametrize("size", [1, 7, 1023, 1024, 1025, 4097, _LONGEST, _LONGEST + 3])
def test_vectors_of_any_length_are_the_same(size: int) -> None:
    values = np.random.default_rng(size).standard_normal((1, 1, size)).astype(np.float32)

    _assert_same([values], 1, None)


@pytest.mark.parametrize("inner", [1, 255, 257, 1030, _LONGEST + 5])
def test_columns_of_any_length_are_the_same(inner: int) -> None:
    values = np.random.default_rng(inner).standard_normal((1, inner, 3)).astype(np.float32)

    _assert_same([values], 2, ChannelGrades(2, (1, 0, 1)))


_MANY = 300_001


def _make_repeated() -> dict[str, Array]:
    """Return tensors with more values in one bin than a counter of 16 bits holds."""
    normal = np.random.default_rng(1).standard_normal(_MANY)
    ones = np.ones(_MANY)
    return {
        "one value": ones,
        "zeros": np.zeros(_MANY),
        "after a Relu": np.maximum(normal, 0),
        "a zero in five": np.where(np.arange(_MANY) % 5, normal, 0),
        "clipped": np.clip(normal, -0.1, 0.1),
        "small ones, then a large one": np.append(ones, 1000.0),
        "zeros, then others": np.append(np.zeros(_MANY), ones),
    }


@pytest.mark.parametrize("name", list(_make_repeated()))
@pytest.mark.parametrize("shape", [(1, 1, -1), (1, -1, 1)])
def test_values_that_repeat_are_the_same(name: str, shape: tuple[int, ...]) -> None:
    values = _make_repeated()[name].astype(np.float32).reshape(shape)

    _assert_same([values, values], 1, None)


def _make_views() -> dict[str, Array]:
    random = np.random.default_rng(0)
    base = random.standard_normal((6, 8, 10)).astype(np.float32)
    unaligned = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.float32)
    return {
        "every second": base[::2, ::2, ::2],
        "reversed": base[::-1, :, ::-1],
        "transposed": base.T,
        "in Fortran order": np.asfortranarray(base),
        "repeated": np.broadcast_to(base[:1], (6, 8, 10)),
        "unaligned": unaligned.reshape(base.shape),
        "in the other byte order": base.astype(base.dtype.newbyteorder()),
        "of one value": base[:1, :1, :1],
        "a vector": base[0, 0],
        "read-only": np.frombuffer(base.tobytes(), np.float32).reshape(base.shape),
    }


@pytest.mark.parametrize("name", list(_make_views()))
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_any_layout_in_memory_is_the_same(name: str, axis: int | None) -> None:
    values = _make_views()[name]
    axis = None if axis is None else min(axis, values.ndim - 1)
    grades = None
    if axis is not None:
        grades = ChannelGrades(axis, tuple(i % 2 for i in range(values.shape[axis])))

    _assert_same([values, values], axis, grades)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_empty_tensors_are_the_same(shape: tuple[int, ...]) -> None:
    _assert_same([np.empty(shape, np.float32)], None, None)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 5, 2047, 2999])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("path", ["numpy", "compiled", "portable"])
def test_nan_and_inf_are_refused(bad: float, position: int, axis: int, path: str) -> None:
    values = np.ones((1, 3, 1000) if axis == 1 else (1, 1000, 3), np.float32)
    values.reshape(-1)[position] = bad

    with calculating(path), pytest.raises(DataError, match="becomes NaN or Inf"):
        _observe([values], axis, ChannelGrades(axis, (0, 3, 3)))


def test_sums_that_overflow_are_lost_on_both_paths() -> None:
    values = np.full((1, 1, 8), 3e38, np.float32)

    _assert_same([values], 1, None)


@settings(max_examples=60)
@given(st.integers(1, 50), st.integers(1, 40), st.integers(0, 1 << 30))
@example(1, 1, 0)
def test_exact_sums_are_the_same(rows: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 1 << 32, (rows, size), np.uint32)
    vectors = bits.view(np.float32)
    vectors = np.where(np.isfinite(vectors), vectors, np.float32(0.0))
    contents = []
    for path in ("numpy", "compiled"):
        with calculating(path):
            total = ExactSum(size)
            total.add(vectors)
            total.add(-vectors[: rows // 2])
            contents.append(total.to_bytes())

    assert contents[1] == contents[0]


def _assert_same_quotients(limbs: npt.NDArray[np.int64], count: int) -> None:
    total = ExactSum.from_bytes(limbs.astype("<i8").tobytes())
    quotients = []
    for path in ("numpy", "compiled"):
        with calculating(path):
            quotients.append(total.divided(count).tobytes())

    assert quotients[1] == quotients[0]


@settings(max_examples=200)
@given(
    st.lists(st.integers(-(1 << 62), 1 << 62), min_size=10, max_size=10),
    st.integers(0, 9),
    st.one_of(st.integers(1, 20), st.integers(1, (1 << 33))),
)
def test_means_are_the_same(limbs: list[int], lowest: int, count: int) -> None:
    vector = np.array(limbs, np.int64)
    vector[:lowest] = 0

    _assert_same_quotients(np.stack([vector, -vector], axis=1), count)


@pytest.mark.parametrize("count", [1, 2, 3, 1 << 31, (1 << 32) - 1, 1 << 32])
@pytest.mark.parametrize("unit", [0, 3, 9])
def test_means_between_two_floats_are_the_same(unit: int, count: int) -> None:
    """Beside a power of two, 2**-53 of it is half of the distance of two floats."""
    limbs = np.zeros((10, 6), np.int64)
    limbs[unit] = [1 << 54, (1 << 54) + 2, (1 << 54) + 6, (1 << 54) - 1, 3, 0]
    limbs[0, :3] += [1, 0, 0]

    _assert_same_quotients(limbs, count)


def test_a_histogram_in_counts_is_that_of_the_values() -> None:
    """Counting agrees with a plain count, not only with the other path."""
    values = np.random.default_rng(3).standard_normal((1, 4, 3000)).astype(np.float32)
    with calculating("compiled"):
        statistics = TensorStatistics(
            ObservedTensor("t", ("", "t"), True, None, None), is_flat=False
        )
        sample = statistics.measure(values)
        if sample is not None:
            statistics.add(sample, "sample")
    histogram = statistics.to_range("t").histogram

    assert isinstance(histogram, Histogram)
    edges = np.arange(BINS + 1) * 2.0**histogram.exponent
    expected, _ = np.histogram(np.abs(values), edges)
    assert histogram.counts.tolist() == expected.tolist()
