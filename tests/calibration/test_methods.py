"""Each calibration method against a plain reference on the full data, and ranges that no order, batch or shard changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import qdq
from qdq.calibration.methods import parse_method
from qdq.calibration.scale_choice import choose_scales
from qdq.calibration.weight_scales import least_error_amax
from qdq.errors import UsageError
from qdq.graph.index import GraphIndex
from qdq.graph.operands import channel_amax
from qdq.observers.collection import CollectionJob, collect_locally
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8, ElementType
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import Histogram
from qdq.ranges.tensor_ranges import Ranges, TensorRange
from qdq.reports.scales_sections import scales_summary
from tests.support.graphs import Array, build, convolution, node, noise
from tests.support.paths import NETWORKS

NAMES = ("digits_plain", "digits_cnn", "digits_attention")
METHODS = ("max", "percentile", "percentile:99.9", "mse", "entropy", "auto")
few = settings(max_examples=60, deadline=None, derandomize=True)
int8 = ELEMENT_TYPES[INT8]


# --- references, on the full data and spelt plainly ------------------------------------------------------------------


def width_of(amax: float) -> float:
    """Return the power of two that cuts amax into at least 2048 and fewer than 4096 bins."""
    width = 1.0
    while amax / width >= 4096:
        width *= 2
    while amax / width < 2048 and width > 2.0**-120:
        width /= 2
    return width


def reference_max(values: Array) -> float:
    return float(np.abs(values.astype(np.float64)).max())


def reference_percentile(values: Array, percent: float) -> float:
    ordered = np.sort(np.abs(values.astype(np.float64)).ravel())
    return float(ordered[max(math.ceil(percent / 100 * ordered.size - 1e-9) - 1, 0)])


def divergence(counts: Array, kept: int) -> float:
    """Return the divergence for one candidate, as pytorch-quantization's entropy calibrator computes it."""
    clipped = counts[:kept].astype(np.float64)
    level = np.arange(kept) * 128 // kept
    filled = clipped > 0
    total = np.bincount(level[filled], clipped[filled], 128)
    bins = np.bincount(level[filled], minlength=128)
    spread = np.where(filled, total[level] / np.maximum(bins[level], 1), 0.0)
    clipped[-1] += counts[kept:].sum()
    if spread.sum() == 0 or (spread[clipped > 0] == 0).any():
        return math.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def reference_entropies(values: Array) -> list[float]:
    """Return the edges of least divergence; numpy's versions round its logarithms differently."""
    magnitudes = np.abs(values.astype(np.float64)).ravel()
    width = width_of(magnitudes.max())
    counts = np.bincount(np.floor(magnitudes / width).astype(int))
    counts[0] = counts[1]
    candidates = range(128, len(counts) + 1)
    divergences = [divergence(counts, kept) for kept in candidates]
    least = min(divergences) + 1e-12
    edges = [i * width for i, d in zip(candidates, divergences, strict=True) if d <= least]
    return [min(edge, float(magnitudes.max())) for edge in edges]


def error_of(values: Array, amax: float) -> float:
    """Return the mean square error of rounding to INT8 with clipping at amax."""
    magnitudes = np.abs(values.astype(np.float64)).ravel()
    step = amax / 127
    return float(np.mean((np.minimum(np.rint(magnitudes / step), 127) * step - magnitudes) ** 2))


def agrees(method: str, values: Array, got: float) -> bool:
    """Whether an amax is the reference's to within a bin, or for mse gives an error as small as any of 1500 others."""
    parsed_method, width = parse_method(method), width_of(reference_max(values))
    if parsed_method.name in ("mse", "auto"):  # alike where all channels are
        best = min(
            error_of(values, amax)
            for amax in np.linspace(reference_max(values) / 16, reference_max(values), 1500)
        )
        return error_of(values, got) <= best * 1.01 + width**2 / 4
    if parsed_method.name == "max":
        return got == reference_max(values)
    if parsed_method.name == "entropy":
        return any(abs(got - edge) <= width for edge in reference_entropies(values))
    return abs(got - reference_percentile(values, parsed_method.percent or 0.0)) <= width


def spread(random: str, *outliers: float, size: int = 20_000, seed: int = 0) -> Array:
    """Return values of one of numpy's distributions."""
    drawn: Array = getattr(np.random.default_rng(seed), random)(*outliers, size=size).astype(
        np.float32
    )
    return drawn


HARD: dict[str, Array] = {
    "normal": spread("normal"),
    "uniform": spread("uniform", -3, 3),
    "one-sided after Relu": np.maximum(spread("normal", seed=1), 0),
    "heavy tail": spread("standard_t", 2, seed=2),
    "log-normal": spread("lognormal", 0, 2, seed=3),
    "constant": np.full(1000, 2.5, np.float32),
    "two values": np.array([1.0] * 999 + [64.0], np.float32),
    "one outlier in a million": np.append(spread("normal", size=999_999, seed=4), np.float32(40)),
    "below FP16's least normal": spread("normal", seed=5) * np.float32(1e-6),
    "near FP16's largest": spread("normal", seed=6) * np.float32(2e4),
    "mostly zero": np.append(np.zeros(19_000, np.float32), spread("normal", size=1000, seed=7)),
    "one value": np.array([-3.0], np.float32),
    "a power of two": np.array([1.0, -2.0, 4.0], np.float32),
}


def amax_of(method: str, values: Array, parts: int = 1, element: ElementType = int8) -> float:
    """Return the amax of values that were added in several parts."""
    histogram = Histogram()
    for part in np.array_split(values.ravel(), parts):
        histogram.add(part)
    return parse_method(method).amax(TensorRange("t", histogram.amax, histogram), element)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", sorted(HARD))
def test_a_method_is_its_reference_on_hard_values(case: str, method: str) -> None:
    got = amax_of(method, HARD[case], min(7, HARD[case].size))
    assert agrees(method, HARD[case], got)
    assert got == amax_of(method, HARD[case][::-1])


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_is_zero_and_a_constant_is_not_clipped(method: str) -> None:
    assert amax_of(method, np.zeros(100, np.float32)) == 0.0
    assert amax_of(method, HARD["constant"]) == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 2.0**-130, 1e-36, 3e38])
@pytest.mark.parametrize("element", [INT8, E4M3])
def test_entropy_takes_denormal_and_enormous_values(scale: float, element: str) -> None:
    values = (np.array([1.0, 0.5, 0.25, 0.75]) * scale).astype(np.float32)
    assert 0 < amax_of("entropy", values, 1, ELEMENT_TYPES[element]) <= values.max()


def test_entropy_clips_one_outlier_and_keeps_what_is_evenly_spread() -> None:
    assert amax_of("entropy", HARD["one outlier in a million"]) < 12
    assert amax_of("entropy", HARD["uniform"]) > 2.9


def test_fp8_needs_less_clipping_than_int8() -> None:
    for case in ("heavy tail", "normal"):
        assert amax_of("entropy", HARD[case], 1, ELEMENT_TYPES[E4M3]) > amax_of(
            "entropy", HARD[case]
        )


@pytest.mark.parametrize("element", [INT8, E4M3])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_error_of_a_histogram_is_that_of_the_values(element: str, power: float) -> None:
    histogram, kind = Histogram(), ELEMENT_TYPES[element]
    histogram.add(HARD["normal"])
    for amax in (histogram.amax, 2.0):
        step = amax / kind.largest
        changes = np.abs(
            kind.round(HARD["normal"].astype(np.float64) / step) * step - HARD["normal"]
        )
        assert histogram.error(amax, kind, power) == pytest.approx(
            float(np.mean(changes**power)), rel=0.02
        )
    assert Histogram().error(1.0, kind) == 0.0


# --- real activations ------------------------------------------------------------------------------------------------


def network(name: str) -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """Return a fixture network and its calibration samples."""
    model = onnx.load(NETWORKS / f"{name}.onnx")
    with np.load(NETWORKS / "digits-calibration.npz") as data:
        images = data["image"][:48]
    return model, [{model.graph.input[0].name: images[i : i + 1]} for i in range(len(images))]


def ranges_of(model: onnx.ModelProto, data: Any) -> Ranges:
    """Return what the planned tensors held."""
    index = GraphIndex(qdq.load(model))
    return collect_locally(CollectionJob(index, qdq.plan(model), data, full=True))


def activations(
    model: onnx.ModelProto, data: list[dict[str, Array]], tensors: list[str]
) -> dict[str, Array]:
    """Return all that some tensors hold over all samples."""
    wider = onnx.ModelProto.FromString(model.SerializeToString())
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    wider.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in tensors if name not in known
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(
        wider.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    computed = [name for name in tensors if name not in data[0]]
    runs = [
        {**feed, **dict(zip(computed, session.run(computed, feed), strict=True))} for feed in data
    ]
    return {name: np.concatenate([run[name].ravel() for run in runs]) for name in tensors}


@pytest.mark.parametrize("name", NAMES)
def test_methods_are_their_references_on_real_activations(name: str) -> None:
    model, data = network(name)
    by_tensor = {r.tensor: r for r in ranges_of(model, data).by_tensor}
    whole = activations(model, data, list(by_tensor))
    assert len(by_tensor) >= 2
    for tensor, values in whole.items():
        for method in METHODS[:-1]:  # what channels matter for auto is in test_importance.py
            got = parse_method(method).amax(by_tensor[tensor], int8)
            assert agrees(method, values, got) or abs(got - reference_max(values)) < 1e-5 * got, (
                f"{method} of {tensor}: {got}"
            )


def bits(ranges: Ranges) -> list[Any]:
    """Return all that ranges hold, in a form that compares bit for bit."""
    held = []
    for r in ranges.by_tensor:
        counts = r.histogram and (
            r.histogram.counts.tobytes(),
            r.histogram.exponent,
            r.histogram.amax,
        )
        sums = r.moments and (
            r.moments.count,
            r.moments.sums.limbs.tobytes(),
            r.moments.squares.limbs.tobytes(),
            r.moments.mean.tobytes(),
        )
        held.append(
            (
                r.tensor,
                r.amax,
                counts,
                sums,
                [(grade, part.to_bytes()) for grade, part in r.by_grade],
            )
        )
    return held


@pytest.mark.parametrize("name", NAMES)
def test_shuffled_samples_give_the_same_bits(name: str) -> None:
    model, data = network(name)
    reference = ranges_of(model, data)
    assert any(r.moments for r in reference.by_tensor)
    shuffled = [data[i] for i in np.random.default_rng(0).permutation(len(data))]
    assert bits(ranges_of(model, shuffled)) == bits(reference)
    index, plan = GraphIndex(qdq.load(model)), qdq.plan(model)
    for method in METHODS:
        first, other = (
            choose_scales(index, plan, ranges, parse_method(method))
            for ranges in (reference, ranges_of(model, shuffled))
        )
        assert first == other


def elementwise() -> onnx.ModelProto:
    """Return a model whose planned tensors are exact whatever the batch: an input, its Relu and its transpose, each read by a weighted layer."""
    nodes = [
        node("Conv", ["x", "w"], "y1"), node("Relu", ["x"], "r"), node("Conv", ["r", "w"], "y2"),
        node("Transpose", ["r"], "t", perm=[0, 2, 3, 1]), node("MatMul", ["t", "m"], "y3"),
    ]  # fmt: skip
    return build(
        nodes, {"x": ["n", 3, 4, 5]}, ["y1", "y2", "y3"], {"w": noise(2, 3, 1, 1), "m": noise(3, 2)}
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    arrays.arrays(np.float32, (6, 3, 4, 5), elements=st.floats(-1e4, 1e4, width=32)),
    st.permutations(range(6)),
    st.sets(st.integers(1, 5)),
)
def test_ranges_do_not_depend_on_order_or_batches(
    images: Array, order: list[int], cuts: set[int]
) -> None:
    model = elementwise()
    reference = ranges_of(model, [{"x": image[None]} for image in images])
    batches = [{"x": batch} for batch in np.split(images[list(order)], sorted(cuts))]
    again = ranges_of(model, batches)
    assert bits(again) == bits(reference)
    assert sum(r.moments is not None for r in reference.by_tensor) >= 2


@few
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.data(),
)
def test_exact_sums_are_exact_in_any_order_and_any_shards(vectors: Array, data: Any) -> None:
    order = data.draw(st.permutations(range(len(vectors))))
    cut = data.draw(st.integers(0, len(vectors)))
    whole, first, second = (ExactSum(vectors.shape[1]) for _ in range(3))
    whole.add(vectors)
    for i in order[:cut]:
        first.add(vectors[i : i + 1])
    second.add(vectors[list(order[cut:])])
    np.testing.assert_array_equal(first.merged(second).limbs, whole.limbs)
    exact = [float(sum(map(Fraction, map(float, column)), Fraction(0)) / 7) for column in vectors.T]
    assert whole.divided(7).tolist() == exact


def test_sums_that_overflow_leave_weights_at_their_largest_value() -> None:
    model = build(
        [node("Conv", ["x", "w"], "y")],
        {"x": [1, 3, 4, 4]},
        ["y"],
        {"w": noise(2, 3, 1, 1) * np.float32(1e-3)},
    )
    data = [{"x": np.full((1, 3, 4, 4), value, np.float32)} for value in (1.0, 3e38)]
    for samples in (data, data[::-1]):
        (tensor_range,) = ranges_of(model, samples).by_tensor
        assert tensor_range.moments is None
        scales = {
            s.tensor: s.scales for s in qdq.calibrate(model, qdq.plan(model), samples).by_pair
        }
        np.testing.assert_allclose(
            scales["w"], np.abs(noise(2, 3, 1, 1)).max((1, 2, 3)) * 1e-3 / 127, rtol=1e-6
        )


# --- weights, outliers, words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", [INT8, E4M3])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_by_mse_are_as_good_as_any_of_many_ranges(axis: int | None, element: str) -> None:
    weight, kind = (
        np.random.default_rng(0).standard_t(3, (6, 5, 40)).astype(np.float32),
        ELEMENT_TYPES[element],
    )
    rows = (
        weight.reshape(1, -1)
        if axis is None
        else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    )
    got = least_error_amax(weight, axis, kind)
    assert got.shape == (len(rows),)

    def change(row: Array, amax: float) -> float:
        return float(
            np.square(
                kind.round(row / np.float64(amax / kind.largest)) * amax / kind.largest - row
            ).sum()
        )

    for row, amax in zip(rows, got, strict=True):
        largest = float(np.abs(row).max())
        best = min(
            change(row, fraction * largest) for fraction in np.linspace(0.25, kind.headroom, 800)
        )
        assert change(row, float(amax)) <= best * (1.1 if element == INT8 else 1.2)
        assert change(row, float(amax)) <= change(row, largest) * (1 + 1e-5)


def test_a_channel_of_zeros_stays_zero_by_mse() -> None:
    weight = noise(3, 4, 5)
    weight[1] = 0
    got = least_error_amax(weight, 0)
    assert got[1] == 0
    np.testing.assert_array_equal(
        np.delete(got, 1), least_error_amax(np.delete(weight, 1, axis=0), 0)
    )


def test_weights_are_scaled_the_way_that_is_asked_for() -> None:
    model, plan = convolution(), qdq.plan(convolution())
    data = [{"x": noise(1, 3, 6, 6, seed=i) + 1} for i in range(3)]

    def scales(**options: Any) -> qdq.Scales:
        return qdq.calibrate(model, plan, data, **options)

    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    of = {
        weight_method: {s.tensor: s.scales for s in scales(weights=weight_method).by_pair}
        for weight_method in ("max", "mse", "shift")
    }
    np.testing.assert_allclose(of["max"]["w1"], channel_amax(weight, 0) / 127, rtol=1e-6)
    np.testing.assert_allclose(of["mse"]["w1"], least_error_amax(weight, 0) / 127, rtol=1e-6)
    assert len({tuple(by_tensor["w1"]) for by_tensor in of.values()}) == 3
    assert of["max"]["x"] == of["mse"]["x"] == of["shift"]["x"]
    assert scales().by_pair == scales(weights="shift").by_pair
    assert scales(method="max").by_pair == scales(method="max", weights="max").by_pair
    assert {s.tensor: s.scales for s in scales(method="max", weights="shift").by_pair}["w1"] == of[
        "shift"
    ]["w1"]
    assert (scales(weights="mse").method, scales().method, scales(method="max").method) == (
        "auto, weights mse",
        "auto",
        "max",
    )
    assert qdq.quantize(model, data, weights="mse").scales.by_pair == scales(weights="mse").by_pair


def test_max_is_the_largest_value_with_and_without_a_histogram() -> None:
    values = HARD["heavy tail"]
    assert amax_of("max", values) == reference_max(values)
    assert parse_method("max").amax(TensorRange("t", 3.0), int8) == 3.0


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_other_words_are_refused() -> None:
    refused(
        lambda: parse_method("entropy:3"),
        "Pass auto, mse, entropy, percentile, percentile:99.9 or max",
    )
    refused(lambda: parse_method("mse", "entropy"), "'entropy'. Pass max, mse or shift")


def test_a_tensor_with_outliers_is_named_with_both_its_ranges() -> None:
    data = [{"x": noise(1, 3, 6, 6, seed=i)} for i in range(40)]
    data[7]["x"][0, 1, 2, 3] = 500
    scales = qdq.calibrate(convolution(), qdq.plan(convolution()), data, method="percentile:99.9")
    (far,) = [outlier for outlier in scales.outliers if outlier.tensor == "x"]
    assert far.amax == 500
    assert far.clipped_at == pytest.approx(
        {s.tensor: s.scales for s in scales.by_pair}["x"][0] * 127
    )
    assert any("x reaches 500 and is clipped at" in line for line in scales_summary(scales).lines)
    assert qdq.calibrate(convolution(), qdq.plan(convolution()), data, method="max").outliers == ()
