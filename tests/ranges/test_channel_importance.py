"""How much channels matter, and ranges that are chosen by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qdq
from qdq.calibration.methods import parse_method
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex
from qdq.observers.collection import CollectionJob, collect_locally
from qdq.quantizer import ELEMENT_TYPES, INT8
from qdq.ranges.channel_importance import GRADE_COUNT, GRADE_FACTOR, channel_grades
from tests.support.graphs import DIGITS, Array, build, node, noise, run
from tests.support.paths import NETWORKS


def weight(*channels: float, outputs: int = 2) -> Array:
    """Return a 1x1 weight whose squares sum up to `channels` for each input channel."""
    return np.array([[[[np.sqrt(c / outputs)]] for c in channels]] * outputs, np.float32)


def grades_of(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {
        tensor: (grades.axis, grades.of_channel)
        for tensor, grades in channel_grades(CompilerView(GraphIndex(qdq.load(model)))).items()
    }


def graded(nodes: list[onnx.NodeProto], **weights: Array) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return the grades of the tensors of a model from x, [1, 3, 4, 4], to y."""
    return grades_of(build(nodes, {"x": [1, 3, 4, 4]}, ["y"], weights))


def test_a_channel_matters_by_the_squares_of_its_weights() -> None:
    assert graded([node("Conv", ["x", "w"], "y")], w=weight(16, 4, 0.5)) == {"x": (1, (0, 1, 2))}
    assert graded([node("Conv", ["x", "w"], "y")], w=weight(1, 1, 1)) == {}
    least = graded([node("Conv", ["x", "w"], "y")], w=weight(1, 0, 1e-30))
    assert least == {"x": (1, (0, GRADE_COUNT - 1, GRADE_COUNT - 1))}


def test_products_of_matrices_count_their_rows() -> None:
    w = np.array([[4.0, 0.0], [1.0, 0.0], [0.0, 2.0]], np.float32)
    model = build([node("MatMul", ["x", "w"], "y")], {"x": [2, 3]}, ["y"], {"w": w})
    assert grades_of(model) == {"x": (1, (0, 2, 1))}
    model = build(
        [node("Gemm", ["x", "w"], "y", transB=1)],
        {"x": [2, 3]},
        ["y"],
        {"w": np.ascontiguousarray(w.T)},
    )
    assert grades_of(model) == {"x": (1, (0, 2, 1))}


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "HardSwish", "AveragePool", "Identity"])
def test_functions_of_one_value_and_pools_hand_it_on(op: str) -> None:
    between = node(op, ["x"], "r", **({"kernel_shape": [2, 2]} if op == "AveragePool" else {}))
    assert graded([between, node("Conv", ["r", "w"], "y")], w=weight(16, 4, 1))["x"] == (
        1,
        (0, 1, 2),
    )


def test_a_depthwise_layer_takes_what_matters_behind_it() -> None:
    depthwise = np.array([1.0, 2.0, 1.0], np.float32).reshape(3, 1, 1, 1)
    nodes = [
        node("Conv", ["x", "d"], "c", group=3),
        node("Relu", ["c"], "r"),
        node("Conv", ["r", "w"], "y"),
    ]
    assert graded(nodes, d=depthwise, w=weight(16, 1, 1)) == {
        "x": (1, (0, 1, 2)),
        "c": (1, (0, 2, 2)),
        "r": (1, (0, 2, 2)),
    }
    assert graded([*nodes[:1], node("Relu", ["c"], "y")], d=depthwise) == {"x": (1, (1, 0, 1))}


def test_constants_that_multiply_count_squared() -> None:
    for op, constant in (("Mul", [4.0, 1.0, 2.0]), ("Div", [0.25, 1.0, 0.5])):
        k = np.array(constant, np.float32).reshape(1, 3, 1, 1)
        assert graded(
            [node(op, ["x", "k"], "m"), node("Conv", ["m", "w"], "y")], k=k, w=weight(1, 1, 1)
        )["x"] == (1, (0, 2, 1))
    whole = noise(1, 3, 4, 4)
    assert "x" not in graded(
        [node("Mul", ["x", "k"], "m"), node("Conv", ["m", "w"], "y")], k=whole, w=weight(1, 1, 1)
    )


def test_batch_normalization_counts_its_scale_and_variance() -> None:
    nodes = [
        node("BatchNormalization", ["x", "s", "b", "m", "v"], "n", epsilon=0.0),
        node("Conv", ["n", "w"], "y"),
    ]
    vectors = {
        "s": np.array([2, 2, 2], np.float32),
        "b": np.zeros(3, np.float32),
        "m": np.zeros(3, np.float32),
        "v": np.array([1, 4, 16], np.float32),
    }
    assert graded(nodes, **vectors, w=weight(1, 1, 1))["x"] == (1, (0, 1, 2))


def test_both_branches_of_a_sum_and_all_readers_count() -> None:
    nodes = [
        node("Conv", ["x", "v"], "c"),
        node("Add", ["c", "x"], "s"),
        node("Conv", ["s", "w"], "y"),
    ]
    got = graded(nodes, v=weight(0, 0, 4, outputs=3), w=weight(64, 4, 0))
    assert got["s"] == (1, (0, 2, GRADE_COUNT - 1))
    assert got["x"] == (1, (0, 2, 2))  # 64, 4 and 4: through the Add and through the convolution


def test_the_parts_of_a_concat_get_their_channels() -> None:
    nodes = [
        node("Relu", ["x"], "a"),
        node("Neg", ["x"], "b"),
        node("Concat", ["a", "b"], "c", axis=1),
        node("Conv", ["c", "w"], "y"),
    ]
    got = graded(nodes, w=weight(16, 4, 1, 1, 1, 1))
    assert got["a"] == (1, (0, 1, 2))
    assert "b" not in got
    across = [
        node("Relu", ["x"], "a"),
        node("Neg", ["x"], "b"),
        node("Concat", ["a", "b"], "c", axis=2),
        node("Conv", ["c", "w"], "y"),
    ]
    assert graded(across, w=weight(16, 4, 1))["b"] == (1, (0, 1, 2))


def test_what_cannot_be_followed_is_left_alone() -> None:
    nodes = [node("Transpose", ["x"], "t", perm=[0, 2, 3, 1]), node("MatMul", ["t", "m"], "y")]
    assert set(graded(nodes, m=np.diag([4.0, 2.0, 1.0]).astype(np.float32))) == {"t"}
    assert (
        graded([node("Conv", ["x", "w"], "y")], w=np.full((2, 3, 1, 1), np.inf, np.float32)) == {}
    )


def test_every_network_of_the_fixtures_is_graded_by_its_own_channels() -> None:
    for name in DIGITS:
        index = GraphIndex(qdq.load(NETWORKS / f"{name}.onnx"))
        for tensor, grades in channel_grades(CompilerView(index)).items():
            shape = index.shape(tensor)
            assert shape is not None
            assert shape[grades.axis] in (None, len(grades.of_channel)), tensor


# --- what auto makes of it -------------------------------------------------------------------------------------------


def outlier_network() -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """Return a convolution whose input's last channel is 30 times as large as the others, and multiplied with small weights."""
    w = noise(8, 4, 1, 1)
    w[:, 3] *= np.float32(1e-3)
    data = [
        {"x": noise(1, 4, 6, 6, seed=i) * np.array([1, 1, 1, 30], np.float32).reshape(1, 4, 1, 1)}
        for i in range(12)
    ]
    return build([node("Conv", ["x", "w"], "y")], {"x": [1, 4, 6, 6]}, ["y"], {"w": w}), data


def reference_auto(values: Array, weights: Array) -> float:
    """Return the least weighed mean square error of 2000 ranges, on the full data."""
    return min(
        weighed_error(values, weights, amax)
        for amax in np.linspace(0.01, 1, 5000) * np.abs(values).max()
    )


def weighed_error(values: Array, weights: Array, amax: float) -> float:
    step = amax / 127
    changes = np.clip(np.rint(values.astype(np.float64) / step), -127, 127) * step - values
    return float((changes**2).mean(axis=(0, 2, 3)) @ weights)


def test_auto_is_its_reference_on_the_full_data() -> None:
    model, data = outlier_network()
    (tensor_range,) = collect_locally(
        CollectionJob(GraphIndex(qdq.load(model)), qdq.plan(model), data, full=True)
    ).by_tensor
    squares = np.square(onnx.numpy_helper.to_array(model.graph.initializer[0])).sum(axis=(0, 2, 3))
    weights = GRADE_FACTOR ** -np.rint(np.log(squares.max() / squares) / np.log(GRADE_FACTOR))
    values = np.concatenate([feed["x"] for feed in data])
    errors = {
        name: weighed_error(
            values, weights, parse_method(name).amax(tensor_range, ELEMENT_TYPES[INT8])
        )
        for name in ("auto", "mse", "percentile", "entropy", "max")
    }
    assert errors["auto"] <= reference_auto(values, weights) * 1.02
    assert errors["auto"] == min(errors.values())
    assert errors["auto"] < errors["mse"] / 10


def test_auto_clips_what_does_not_matter_and_the_output_gains() -> None:
    model, data = outlier_network()

    def signal_to_noise(method: str) -> float:
        quantized = qdq.quantize(model, data, method=method).model
        float_outputs, got = (
            np.concatenate([run(m, feed)[0] for feed in data]) for m in (model, quantized)
        )
        return float(10 * np.log10(np.sum(float_outputs**2) / np.sum((float_outputs - got) ** 2)))

    assert signal_to_noise("auto") > signal_to_noise("mse") + 3


def test_auto_is_mse_where_all_channels_matter_alike() -> None:
    model = build(
        [node("Conv", ["x", "w"], "y")],
        {"x": [1, 3, 6, 6]},
        ["y"],
        {"w": np.ones((2, 3, 1, 1), np.float32)},
    )
    data = [{"x": noise(1, 3, 6, 6, seed=i)} for i in range(5)]
    auto, mse = (
        qdq.calibrate(model, qdq.plan(model), data, method=method).by_pair
        for method in ("auto", "mse")
    )
    assert auto == mse


def test_samples_with_other_channels_are_counted_all_the_same() -> None:
    model, data = outlier_network()
    job = CollectionJob(GraphIndex(qdq.load(model)), qdq.plan(model), data, full=True)
    (tensor_range,) = collect_locally(job).by_tensor
    assert tensor_range.histogram is not None
    assert (
        sum(int(part.counts.sum()) for _, part in tensor_range.by_grade)
        == int(tensor_range.histogram.counts.sum())
        == 12 * 4 * 36
    )


def test_grades_are_the_same_for_any_part_of_the_data(tmp_path: Path) -> None:
    model, data = outlier_network()
    ranges: Any = [
        collect_locally(
            CollectionJob(GraphIndex(qdq.load(model)), qdq.plan(model), part, full=True)
        ).by_tensor[0]
        for part in (data[:5], data[5:], data)
    ]
    assert [(g, p.to_bytes()) for g, p in ranges[0].merged(ranges[1]).by_grade] == [
        (g, p.to_bytes()) for g, p in ranges[2].by_grade
    ]
