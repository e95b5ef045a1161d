"""Ranges and scales: histograms against references on the full data, weights under their own cost, and every form of data."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import qdq
from qdq.calibration.methods import parse_method
from qdq.calibration.pair_scales import DEAD_AMAX
from qdq.calibration.weight_scales import least_shift_amax
from qdq.data.feeds import open_feeds
from qdq.errors import DataError, PlanError, UsageError
from qdq.graph.index import GraphIndex
from qdq.graph.operands import channel_amax
from qdq.observers.collection import CollectionJob, collect_locally
from qdq.planning.decisions import ScaleGroup
from qdq.quantizer import ELEMENT_TYPES, INT8, INT8_LEVELS
from qdq.ranges.histogram import BINS, Histogram
from qdq.ranges.tensor_ranges import Ranges
from tests.support.graphs import Array, build, convolution, node, noise, run

few = settings(max_examples=60, deadline=None, derandomize=True)
FLOATS = arrays.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.one_of(
        st.floats(-1e3, 1e3, width=32),
        st.floats(-(2.0**-126), 2.0**-126, width=32, allow_subnormal=True),
        st.floats(2.0**100, 2.0**127, width=32),
        st.just(0.0),
    ),
)


def histogram_of(*chunks: Array) -> Histogram:
    """Return the histogram of some chunks, added in order."""
    histogram = Histogram()
    for chunk in chunks:
        histogram.add(chunk)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    """Whether two histograms hold the same counts over the same bins."""
    return (
        bool((a.counts == b.counts).all())
        and a.amax == b.amax
        and (a.exponent == b.exponent or a.amax == 0.0)
    )


def bin_width(histogram: Histogram) -> float:
    """Return how wide the bins are."""
    return math.ldexp(1.0, histogram.exponent)


def normal(n: int = 20_000, seed: int = 0) -> Array:
    """Return standard normal values."""
    return noise(n, seed=seed)


CASES: dict[str, Array] = {
    "normal": normal(),
    "one-sided": np.abs(normal(seed=1)),
    "uniform": np.random.default_rng(2).uniform(-3, 3, 20_000).astype(np.float32),
    "heavy tail": np.random.default_rng(3).standard_t(2, 20_000).astype(np.float32),
    "log-normal": np.random.default_rng(4).lognormal(0, 2, 20_000).astype(np.float32),
    "constant": np.full(1000, 2.5, np.float32),
    "two values": np.array([1.0] * 999 + [64.0], np.float32),
    "mostly zero": np.concatenate([np.zeros(19_000, np.float32), normal(1000, seed=5)]),
    "one outlier in a million": np.concatenate(
        [normal(999_999, seed=6), np.array([40.0], np.float32)]
    ),
    "huge": normal(seed=7) * np.float32(1e37),
    "tiny": normal(seed=8) * np.float32(1e-30),
    "a power of two": np.array([1.0, -2.0, 4.0], np.float32),
    "one value": np.array([-3.0], np.float32),
}


@few
@given(st.lists(FLOATS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_counts_do_not_depend_on_order_batches_or_merging(chunks: list[Array], rng: Any) -> None:
    whole = np.concatenate(chunks)
    once = histogram_of(whole)
    shuffled = whole.copy()
    rng.shuffle(shuffled)
    parts = [histogram_of(chunk) for chunk in chunks]
    rng.shuffle(parts)
    merged = functools.reduce(Histogram.merged, parts)
    assert same(histogram_of(*chunks), once)
    assert same(histogram_of(*chunks[::-1]), once)
    assert same(histogram_of(*(shuffled[i : i + 1] for i in range(len(shuffled)))), once)
    assert same(merged, once)


@few
@given(st.lists(FLOATS, min_size=2, max_size=4))
def test_merging_leaves_the_merged_one_as_it_was(chunks: list[Array]) -> None:
    parts = [histogram_of(chunk) for chunk in chunks]
    before = [(part.counts.tolist(), part.exponent, part.amax) for part in parts]
    total = functools.reduce(Histogram.merged, parts, Histogram())
    total.add(np.array([3.0], np.float32))
    assert [(part.counts.tolist(), part.exponent, part.amax) for part in parts] == before


@few
@given(FLOATS)
def test_every_value_is_counted_once_in_the_bin_it_lies_in(values: Array) -> None:
    histogram = histogram_of(values)
    assert histogram.counts.sum() == values.size
    if histogram.amax > 0:
        expected = np.floor(np.abs(values.astype(np.float64)) / bin_width(histogram)).astype(int)
        np.testing.assert_array_equal(histogram.counts, np.bincount(expected, minlength=BINS))


@pytest.mark.parametrize("name", sorted(CASES))
def test_at_least_half_of_the_bins_are_below_the_largest_value(name: str) -> None:
    histogram = histogram_of(CASES[name])
    assert BINS / 2 <= histogram.amax / bin_width(histogram) < BINS


@pytest.mark.parametrize("percent", [50.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_percentile_is_that_of_the_full_data_within_a_bin(name: str, percent: float) -> None:
    values = CASES[name]
    histogram = histogram_of(*np.array_split(values, min(7, len(values))))
    got = histogram.percentile(percent)
    ordered = np.sort(np.abs(values.astype(np.float64)))
    reference = ordered[max(math.ceil(percent / 100 * len(ordered) - 1e-9) - 1, 0)]
    assert reference <= got <= reference + bin_width(histogram)
    assert got <= histogram.amax
    assert (ordered <= got).mean() >= percent / 100 - 1e-12


@few
@given(FLOATS, st.floats(1.0, 100.0))
def test_a_percentile_covers_the_share_it_names_and_no_bin_more(
    values: Array, percent: float
) -> None:
    histogram = histogram_of(values)
    got, magnitudes = histogram.percentile(percent), np.abs(values.astype(np.float64))
    assert (magnitudes <= got).mean() >= percent / 100 - 1e-9
    if histogram.amax > 0 and got > bin_width(histogram):
        assert (magnitudes < got - bin_width(histogram)).mean() < percent / 100 + 1e-9


def error_of(values: Array, amax: float) -> float:
    """Return the mean square error of rounding values to INT8 with clipping at amax, in float64."""
    exact = np.abs(values.astype(np.float64))
    step = amax / INT8_LEVELS
    return float(np.mean((np.minimum(np.rint(exact / step), INT8_LEVELS) * step - exact) ** 2))


@pytest.mark.parametrize(
    "name",
    sorted(
        set(CASES)
        - {"one outlier in a million", "a power of two", "one value", "constant", "two values"}
    ),
)
def test_the_least_error_is_that_of_the_full_data(name: str) -> None:
    values = CASES[name]
    histogram = histogram_of(values)
    got = histogram.least_error(ELEMENT_TYPES[INT8])
    best = min(
        error_of(values, amax) for amax in np.linspace(histogram.amax / 16, histogram.amax, 1500)
    )
    assert error_of(values, got) <= best * 1.01
    assert histogram.amax / 16 <= got <= histogram.amax


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_least_error_is_never_more_than_that_of_the_largest_value(name: str) -> None:
    values = CASES[name]
    histogram = histogram_of(values)
    slack = (bin_width(histogram) / 2) ** 2
    assert (
        error_of(values, histogram.least_error(ELEMENT_TYPES[INT8]))
        <= error_of(values, histogram.amax) + slack
    )


def test_one_outlier_in_a_million_is_clipped_by_mse_and_percentile() -> None:
    histogram = histogram_of(CASES["one outlier in a million"])
    assert 4.0 < histogram.least_error(ELEMENT_TYPES[INT8]) < 12.0
    assert 3.0 < histogram.percentile(99.99) < 5.0
    assert histogram.amax == 40.0


@pytest.mark.parametrize("method", ["max", "mse", "percentile"])
def test_all_zero_is_zero(method: str) -> None:
    histogram = histogram_of(np.zeros(10, np.float32), np.zeros((2, 3), np.float32))
    assert (
        histogram.amax,
        histogram.percentile(99.9),
        histogram.least_error(ELEMENT_TYPES[INT8]),
    ) == (
        0.0,
        0.0,
        0.0,
    )
    assert histogram.counts[0] == 16
    histogram.add(np.array([1.0], np.float32))
    assert histogram.counts[0] == 16
    assert histogram.counts.sum() == 17
    assert parse_method(method).name == method


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 2.0**-130, 1e-36])
def test_denormal_values_neither_fail_nor_exceed_the_largest(scale: float) -> None:
    values = (np.array([1.0, 2.0, 3.0]) * scale).astype(np.float32)
    histogram = histogram_of(values)
    assert histogram.counts.sum() == 3
    assert 0 < histogram.percentile(99.99) <= histogram.amax
    assert 0 < histogram.least_error(ELEMENT_TYPES[INT8]) <= histogram.amax


def test_the_largest_float_is_counted() -> None:
    largest = np.finfo(np.float32).max
    histogram = histogram_of(np.array([1.0, -largest], np.float32))
    assert histogram.amax == float(largest)
    assert histogram.counts.sum() == 2
    assert histogram.percentile(100.0) == float(largest)


def test_half_precision_values_are_counted_as_they_are() -> None:
    values = noise(500, dtype=np.float16)
    assert same(histogram_of(values), histogram_of(values.astype(np.float32)))


# --- weights ---------------------------------------------------------------------------------------------------------


def change_of_outputs(
    weight: Array, amax: Array, mean: Array, variance: Array, group: int
) -> Array:
    """Return sum_c v_c * sum_taps e^2 + (sum_c m_c * sum_taps e)^2 for each output channel, in float64, term by term."""
    outputs, inputs, _ = weight.shape
    costs = []
    for k in range(outputs):
        step = max(float(amax[k]) / INT8_LEVELS, float(np.finfo(np.float32).tiny))
        row = weight[k].astype(np.float64)
        error = np.clip(np.rint(row / step), -INT8_LEVELS, INT8_LEVELS) * step - row
        first = (k // (outputs // group)) * inputs
        channels = range(first, first + inputs)
        spread = sum(variance[c] * float((error[i] ** 2).sum()) for i, c in enumerate(channels))
        shift = sum(mean[c] * float(error[i].sum()) for i, c in enumerate(channels))
        costs.append(spread + shift**2)
    return np.array(costs)


LAYOUTS = {
    "matrix": (6, 8, 1, 1),
    "conv": (6, 4, 9, 1),
    "grouped": (6, 2, 9, 3),
    "depthwise": (6, 1, 9, 6),
    "depth multiplier": (8, 1, 4, 4),
    "large": (70, 100, 10, 1),
}


@pytest.mark.parametrize("sided", [False, True], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_weights_change_outputs_no_more_than_with_the_largest_value(
    layout: str, sided: bool
) -> None:
    outputs, inputs, taps, group = LAYOUTS[layout]
    rng = np.random.default_rng(hash_of(layout))
    weight = rng.standard_normal((outputs, inputs, taps)).astype(np.float32) * rng.lognormal(
        0, 1, (outputs, 1, 1)
    ).astype(np.float32)
    mean = (
        rng.uniform(0.5, 3, inputs * group) if sided else rng.standard_normal(inputs * group) * 0.1
    )
    variance = rng.uniform(0.1, 2, inputs * group)
    chosen, plain = least_shift_amax(weight, mean, variance, group), channel_amax(weight, 0)
    got, reference = (
        change_of_outputs(weight, amax, mean, variance, group) for amax in (chosen, plain)
    )
    assert (got <= reference * (1 + 1e-3)).all()
    assert got.sum() < reference.sum()
    assert ((chosen >= 0.79 * plain) & (chosen <= 1.21 * plain)).all()


def hash_of(text: str) -> int:
    """Return a number that is the same in every process."""
    return sum(text.encode())


@few
@given(
    arrays.arrays(np.float32, (3, 2, 2), elements=st.floats(-4, 4, width=16)),
    arrays.arrays(np.float64, 2, elements=st.floats(-4, 4)),
    arrays.arrays(np.float64, 2, elements=st.floats(0, 4)),
)
def test_any_weights_change_outputs_no_more_than_with_the_largest_value(
    weight: Array, mean: Array, variance: Array
) -> None:
    chosen, plain = least_shift_amax(weight, mean, variance), channel_amax(weight, 0)
    got, reference = (
        change_of_outputs(weight, amax, mean, variance, 1) for amax in (chosen, plain)
    )
    assert (got <= reference * (1 + 1e-3) + 1e-9).all()


def test_one_shift_of_the_mean_is_what_depthwise_scales_avoid() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 1, 9)).astype(np.float32)
    mean, variance = np.full(32, 4.0), np.full(32, 0.1)
    chosen, plain = least_shift_amax(weight, mean, variance, 32), channel_amax(weight, 0)
    got, reference = (
        change_of_outputs(weight, amax, mean, variance, 32).mean() for amax in (chosen, plain)
    )
    assert got < reference / 10


@pytest.mark.parametrize("group", [1, 2])
def test_zero_channels_of_weights_stay_zero_and_do_not_disturb_others(group: int) -> None:
    weight = noise(4, 2, 3, seed=1)
    weight[1] = 0.0
    mean, variance = np.ones(2 * group), np.ones(2 * group)
    with_zero = least_shift_amax(weight, mean, variance, group)
    assert with_zero[1] == 0.0
    weight[1] = 1.0
    np.testing.assert_array_equal(
        np.delete(with_zero, 1), np.delete(least_shift_amax(weight, mean, variance, group), 1)
    )


def test_inputs_that_never_vary_or_are_zero_are_no_obstacle() -> None:
    weight = noise(4, 2, 3, seed=1)
    for mean in (np.zeros(2), np.ones(2)):
        chosen = least_shift_amax(weight, mean, np.zeros(2))
        assert np.isfinite(chosen).all()
        assert (chosen > 0).all()


def test_the_largest_of_each_channel_takes_every_axis() -> None:
    weight = noise(2, 3, 4)
    for axis in range(3):
        np.testing.assert_array_equal(
            channel_amax(weight, axis),
            np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(1),
        )
    np.testing.assert_array_equal(channel_amax(weight, None), [np.abs(weight).max()])


# --- scales of a plan ------------------------------------------------------------------------------------------------


def scales_of(
    model: onnx.ModelProto, data: Any, method: str = "max", **options: Any
) -> dict[str, tuple[float, ...]]:
    """Return the scales of each planned tensor."""
    plan = qdq.plan(model)
    return {
        s.tensor: s.scales
        for s in qdq.calibrate(model, plan, data, method=method, **options).by_pair
    }


def ranges_of(
    model: onnx.ModelProto, data: Any, histograms: bool = True, batch: int | None = None
) -> Ranges:
    """Return what the planned tensors held."""
    index = GraphIndex(qdq.load(model))
    return collect_locally(CollectionJob(index, qdq.plan(model), data, histograms, batch))


def test_max_is_the_largest_value_over_all_samples() -> None:
    model = convolution()
    data = [{"x": noise(1, 3, 6, 6, seed=i)} for i in range(5)]
    relu = build(
        model.graph.node[:2],
        {"x": [1, 3, 6, 6]},
        ["r"],
        {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer},
    )
    scales = scales_of(model, data)
    assert scales["x"] == (pytest.approx(max(np.abs(d["x"]).max() for d in data) / 127, rel=1e-6),)
    assert scales["r"] == (
        pytest.approx(max(np.abs(run(relu, d)[0]).max() for d in data) / 127, rel=1e-5),
    )
    assert len(scales["w1"]) == 4
    assert len(scales["w2"]) == 5


@pytest.mark.parametrize("method", ["mse", "percentile", "percentile:99.9", "max"])
def test_no_method_exceeds_the_largest_value(method: str) -> None:
    data = [{"x": noise(1, 3, 6, 6, seed=i)} for i in range(3)]
    largest, got = scales_of(convolution(), data), scales_of(convolution(), data, method)
    for tensor in ("x", "r"):
        assert 0 < got[tensor][0] <= largest[tensor][0] * (1 + 1e-6)


@pytest.mark.parametrize(
    "text", ["percentile:0", "percentile:101", "max:3", "entropy:3", "", "percentile:"]
)
def test_unknown_methods_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="method"):
        parse_method(text)


def concatenated(factor: float) -> onnx.ModelProto:
    """Return a Concat of a = relu(x) and b = factor * x, each of them and their Concat read by a convolution."""
    return build(
        [
            node("Relu", ["x"], "a"), node("Mul", ["x", "ten"], "b"), node("Concat", ["a", "b"], "c", axis=1),
            node("Conv", ["a", "w3"], "y1"), node("Conv", ["b", "w3"], "y2"), node("Conv", ["c", "w6"], "y3"),
        ],
        {"x": [1, 3, 4, 4]}, ["y1", "y2", "y3"], {"ten": np.array(factor, np.float32), "w3": noise(2, 3, 1, 1), "w6": noise(2, 6, 1, 1)},
    )  # fmt: skip


def test_members_of_a_concat_get_the_largest_range_of_them() -> None:
    model = concatenated(4)
    data = [{"x": noise(1, 3, 4, 4, seed=i)} for i in range(3)]
    assert qdq.plan(model).scale_groups == (ScaleGroup(("a", "b", "c"), ("concat-scales",), 10),)
    for method in ("max", "mse", "percentile:99"):
        scales = scales_of(model, data, method)
        assert scales["a"] == scales["b"] == scales["c"]
    assert scales_of(model, data)["a"][0] == pytest.approx(
        4 * max(np.abs(d["x"]).max() for d in data) / 127, rel=1e-5
    )


def test_a_member_of_a_tenth_of_the_range_keeps_its_own() -> None:
    model, data = concatenated(30), [{"x": noise(1, 3, 4, 4, seed=i)} for i in range(3)]
    result = qdq.quantize(model, data, method="max")
    scales = {s.tensor: s.scales for s in result.scales.by_pair}
    assert scales["b"] == scales["c"]
    assert scales["a"][0] < scales["c"][0] / 10
    assert result.findings == ()


def test_a_weight_that_is_also_concatenated_keeps_its_channel_scales() -> None:
    model = build(
        [node("MatMul", ["x", "w"], "y"), node("Concat", ["x", "w"], "c", axis=0), node("MatMul", ["c", "v"], "z")],
        {"x": [2, 3]}, ["y", "z"], {"w": noise(3, 3), "v": noise(3, 2, seed=1)},
    )  # fmt: skip
    result = qdq.quantize(model, [{"x": 20 * noise(2, 3)}], method="max")
    assert result.plan.scale_groups == (ScaleGroup(("c", "x"), ("concat-scales",), 10),)
    assert result.findings == ()


def test_dead_tensors_are_named_and_get_a_harmless_scale() -> None:
    model = convolution()
    zeros = [{"x": np.zeros((1, 3, 6, 6), np.float32)}]
    for method in ("max", "mse", "percentile"):
        plan = qdq.plan(model)
        scales = qdq.calibrate(model, plan, zeros, method=method)
        assert scales.dead == ("x",)
        assert {s.tensor: s.scales for s in scales.by_pair}["x"] == (
            pytest.approx(DEAD_AMAX / 127),
        )
    assert qdq.calibrate(model, qdq.plan(model), "noise").dead == ()


def test_zero_channels_of_a_weight_get_a_harmless_scale() -> None:
    weight = noise(4, 3, 3, 3)
    weight[2] = 0.0
    model = build([node("Conv", ["x", "w"], "y")], {"x": [1, 3, 6, 6]}, ["y"], {"w": weight})
    for method in ("max", "mse"):
        scales = scales_of(model, "noise", method)["w"]
        assert scales[2] == pytest.approx(DEAD_AMAX / 127)
        assert all(s > 0 for s in scales)
        result = qdq.quantize(model, "noise", method=method)
        assert not run(result.model, {"x": noise(1, 3, 6, 6)})[0][:, 2].any()


@pytest.mark.parametrize("magnitude", [1e-44, 1e-30, 1e30, 3e38])
def test_extreme_inputs_give_positive_finite_scales(magnitude: float) -> None:
    model = build(
        [node("Conv", ["x", "w"], "y")],
        {"x": [1, 3, 6, 6]},
        ["y"],
        {"w": noise(4, 3, 3, 3) * np.float32(1e-3)},
    )
    values = np.clip(noise(1, 3, 6, 6), -1, 1) * np.float64(magnitude)
    for method in ("max", "mse", "percentile"):
        scales = scales_of(model, [{"x": values.astype(np.float32)}], method)
        assert all(0 < s < np.inf for channel in scales.values() for s in channel)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tensors_that_overflow_are_named(bad: float) -> None:
    model = build(
        [node("Mul", ["x", "factor"], "m"), node("Conv", ["m", "w"], "y")],
        {"x": [1, 3, 6, 6]},
        ["y"],
        {"w": noise(4, 3, 3, 3), "factor": np.array(bad, np.float32)},
    )
    with pytest.raises(DataError, match="sample 0: tensor 'm' becomes NaN or Inf"):
        scales_of(model, "noise")


def test_one_tensor_read_along_different_axes_is_calibrated() -> None:
    model = build(
        [node("Conv", ["x", "w"], "a"), node("MatMul", ["x", "m"], "b"), node("Conv", ["x", "v"], "c")],
        {"x": [1, 2, 5, 4]}, ["a", "b", "c"], {"w": noise(3, 2, 1, 1), "m": noise(4, 4), "v": noise(3, 2, 3, 3)},
    )  # fmt: skip
    scales = scales_of(model, "noise", "mse")
    np.testing.assert_allclose(scales["m"], np.abs(noise(4, 4)).max(0) / 127, rtol=1e-6)


def test_scales_for_another_plan_or_model_are_refused() -> None:
    model = convolution()
    plan, other = qdq.plan(model), qdq.plan(model, leave_float=["a_node"])
    scales = qdq.calibrate(model, plan, "noise")
    with pytest.raises(PlanError, match="computed for another plan"):
        qdq.apply(model, other, scales)
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    changed.graph.initializer[0].raw_data = noise(4, 3, 3, 3, seed=9).tobytes()
    with pytest.raises(PlanError, match="plan again"):
        qdq.calibrate(changed, plan, "noise")
    with pytest.raises(PlanError, match="plan again"):
        qdq.apply(changed, plan, scales)


# --- data ------------------------------------------------------------------------------------------------------------


def feeds(model: onnx.ModelProto, data: Any, batch: int | None = None) -> list[Array]:
    """Return what the input `x` is fed."""
    return [feed["x"] for feed in open_feeds(GraphIndex(qdq.load(model)), data, batch)]


IMAGES = noise(6, 3, 6, 6, seed=3)


def stacked(folder: Path, array: Array, name: str = "all.npz") -> Path:
    """Write one .npz of many samples."""
    np.savez(folder / name, x=array)
    return folder / name


def test_a_folder_holds_one_sample_a_file_in_order_of_names(tmp_path: Path) -> None:
    for i in range(6):
        stacked(tmp_path, IMAGES[i : i + 1], f"{i}.npz")
    np.testing.assert_array_equal(np.concatenate(feeds(convolution(), tmp_path)), IMAGES)


def test_one_npz_is_cut_to_a_fixed_batch(tmp_path: Path) -> None:
    path = stacked(tmp_path, IMAGES)
    for batch in (1, 2, 3):
        got = feeds(convolution(batch=batch), path)
        assert [len(g) for g in got] == [batch] * (6 // batch)
        np.testing.assert_array_equal(np.concatenate(got), IMAGES)
    with pytest.raises(DataError, match="fixed at 2, --batch 3 cannot change it"):
        feeds(convolution(batch=2), path, 3)


def test_one_npz_is_cut_to_the_batch_that_is_asked_for(tmp_path: Path) -> None:
    path = stacked(tmp_path, IMAGES)
    for batch, sizes in ((None, [1] * 6), (1, [1] * 6), (4, [4, 2]), (9, [6])):
        got = feeds(convolution(batch="n"), path, batch)
        assert [len(g) for g in got] == sizes
        np.testing.assert_array_equal(np.concatenate(got), IMAGES)


def test_an_extra_leading_axis_counts_samples(tmp_path: Path) -> None:
    path = stacked(tmp_path, IMAGES.reshape(3, 2, 3, 6, 6))
    got = feeds(convolution(batch=2), path)
    assert [g.shape for g in got] == [(2, 3, 6, 6)] * 3
    np.testing.assert_array_equal(np.concatenate(got), IMAGES)


def test_a_script_gives_samples_by_its_function(tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    body = "    for i in range({n}):\n        yield {{'x': np.full((1, 3, 6, 6), i, np.float32)}}\n"
    script.write_text(
        "import numpy as np\ndef load_data():\n"
        + body.format(n=2)
        + "def other():\n"
        + body.format(n=4)
    )
    assert [g.flat[0] for g in feeds(convolution(), script)] == [0, 1]
    assert [g.flat[0] for g in feeds(convolution(), str(script))] == [0, 1]
    assert [g.flat[0] for g in feeds(convolution(), f"{script}:other")] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="missing"):
        feeds(convolution(), f"{script}:missing")


def test_any_iterable_of_samples_will_do() -> None:
    data = [{"x": image[None]} for image in IMAGES]
    for given_data in (data, tuple(data), (sample for sample in data)):
        np.testing.assert_array_equal(np.concatenate(feeds(convolution(), given_data)), IMAGES)


def test_noise_is_seeded_and_fills_dynamic_dimensions() -> None:
    first, second = (
        feeds(convolution(batch="n"), "noise", 3),
        feeds(convolution(batch="n"), "noise", 3),
    )
    assert [g.shape for g in first] == [(3, 3, 6, 6)] * 8
    np.testing.assert_array_equal(first, second)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (list, "holds no samples"),
    "no data": (lambda: None, "no calibration data"),
    "another name": (lambda: [{"image": IMAGES[:1]}], "no array for input 'x'; it holds 'image'"),
    "another type": (
        lambda: [{"x": IMAGES[:1].astype(np.float64)}],
        r"holds float64, the model needs float32\. Convert it with .astype\('float32'\)",
    ),
    "another shape": (lambda: [{"x": IMAGES[:1, :2]}], r"has shape \[1, 2, 6, 6\]"),
    "another rank": (lambda: [{"x": IMAGES[0]}], r"has shape \[3, 6, 6\]"),
    "NaN": (lambda: [{"x": IMAGES[:1] * np.float32(np.nan)}], "holds NaN or Inf"),
    "an empty array": (lambda: [{"x": IMAGES[:0]}], "shape|empty"),
    "an array": (lambda: [IMAGES[:1]], "Each sample must map input names to arrays"),
    "arrays of other names": (lambda: {"z": IMAGES}, "the sample has no array for input 'x'"),
    "no such path": (lambda: "nowhere/at/all", "no such file or folder"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_data_that_does_not_fit_is_named(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        qdq.quantize(convolution(), make())


def test_samples_of_different_shapes_are_calibrated_together() -> None:
    model = build([node("Conv", ["x", "w"], "a"), node("Relu", ["a"], "r"), node("Conv", ["r", "v"], "y")],
                  {"x": ["n", 3, "h", "w"]}, {"y": ["n", 2, None, None]}, {"w": noise(4, 3, 3, 3), "v": noise(2, 4, 1, 1)})  # fmt: skip
    data = [{"x": noise(n, 3, h, w, seed=h)} for n, h, w in ((1, 6, 6), (2, 9, 5), (1, 3, 12))]
    scales = scales_of(model, data)
    assert scales["x"][0] == pytest.approx(max(np.abs(d["x"]).max() for d in data) / 127, rel=1e-6)
    for method in ("mse", "percentile"):
        result = qdq.quantize(model, data, method=method)
        for sample in data:
            run(result.model, sample)


@pytest.mark.parametrize("method", ["max", "mse", "percentile"])
def test_ranges_do_not_depend_on_the_batch_size(tmp_path: Path, method: str) -> None:
    path, model = stacked(tmp_path, IMAGES), convolution(batch="n")
    reference = scales_of(model, path, method, batch=1)
    for batch in (2, 4, 6):
        got = scales_of(model, path, method, batch=batch)
        assert got["x"] == reference["x"]
        for tensor, scales in reference.items():
            np.testing.assert_allclose(got[tensor], scales, rtol=2e-3)


def test_histograms_of_inputs_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    path, model = stacked(tmp_path, IMAGES), convolution(batch="n")
    histograms = [
        next(t for t in ranges_of(model, path, batch=batch).by_tensor if t.tensor == "x")
        for batch in (1, 4)
    ]
    assert histograms[0].histogram is not None
    assert histograms[1].histogram is not None
    assert same(histograms[0].histogram, histograms[1].histogram)


def test_the_moments_of_an_input_are_those_of_all_samples_together() -> None:
    data = [{"x": noise(n, 3, 6, 6, seed=n) + 2} for n in (1, 2, 4)]
    (tensor_range,) = (
        t for t in ranges_of(convolution(batch="n"), data).by_tensor if t.tensor == "x"
    )
    whole = np.concatenate([d["x"] for d in data]).astype(np.float64)
    assert tensor_range.moments is not None
    np.testing.assert_allclose(tensor_range.moments.mean, whole.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(tensor_range.moments.variance, whole.var((0, 2, 3)), rtol=1e-4)


def test_samples_are_counted_and_progress_is_told() -> None:
    counts: list[int] = []
    model = convolution()
    scales = qdq.calibrate(
        model, qdq.plan(model), [{"x": image[None]} for image in IMAGES], progress=counts.append
    )
    assert counts == [1, 2, 3, 4, 5, 6]
    assert scales.samples == 6


def test_only_a_few_samples_are_held_at_a_time() -> None:
    arrays: list[weakref.ref[Array]] = []
    most: list[int] = []

    def samples() -> Iterator[dict[str, Array]]:
        for i in range(60):
            array = noise(1, 3, 6, 6, seed=i)
            arrays.append(weakref.ref(array))
            yield {"x": array}
            del array
            most.append(sum(ref() is not None for ref in arrays))

    qdq.quantize(convolution(), samples())
    assert len(most) == 60
    assert max(most) < 12


def test_an_input_of_unknown_rank_that_is_fed_a_scalar_leaves_the_weight_its_largest_values() -> (
    None
):
    weight = noise(4, 4)
    model = build([node("Gemm", ["x", "w"], "y")], {"x": []}, {"y": [1, 4]}, {"w": weight})
    for declared in (*model.graph.input, *model.graph.output):
        declared.type.tensor_type.ClearField("shape")
    scales = qdq.calibrate(model, qdq.plan(model), "noise")
    assert np.allclose(
        [s.scales for s in scales.by_pair if s.tensor == "w"], np.abs(weight).max(axis=0) / 127
    )


@few
@given(arrays.arrays(np.float32, 50, elements=st.floats(-1e3, 1e3, width=32)))
def test_the_mean_square_is_that_of_the_values_to_within_a_bin(values: Array) -> None:
    histogram = histogram_of(values)

    root = math.sqrt(histogram.mean_square())

    assert root == pytest.approx(
        math.sqrt(np.mean(values.astype(np.float64) ** 2)), abs=math.ldexp(1.0, histogram.exponent)
    )


def test_no_values_have_no_mean_square() -> None:
    assert Histogram().mean_square() == 0.0
