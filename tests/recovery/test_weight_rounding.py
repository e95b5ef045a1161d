"""GPTQ: the integers of weights, from the second moments of their layers' inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import qdq
from qdq.graph.index import GraphIndex
from qdq.recovery.product_rows import find_layout
from qdq.recovery.second_moments import sum_second_moments
from qdq.recovery.weight_rounding import InputMoments, round_by_moments
from tests.support.cli_runner import refused, save
from tests.support.cli_runner import run as cli
from tests.support.graphs import Array, build, node, noise, run

INT4_LEVELS = (-8, 7)


def correlated(samples: int, inputs: int, seed: int = 0) -> Array:
    """Return inputs that share most of their variance, as activations do."""
    return noise(samples, inputs // 4, seed=seed) @ noise(inputs // 4, inputs, seed=seed + 1)


def make_moments(columns: Array) -> InputMoments:
    """Return the moments of one group of inputs."""
    values = columns.astype(np.float64)
    return InputMoments((values.T @ values)[None])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([4, 24, 160]))
def test_the_products_have_no_more_error_than_with_the_nearest_integers(
    seed: int, inputs: int
) -> None:
    columns, rows = correlated(3 * inputs, inputs, seed), noise(1, 5, inputs, seed=seed + 2)
    steps = np.full_like(rows, 0.3)
    integers, share = round_by_moments(rows, steps, make_moments(columns), INT4_LEVELS)
    nearest = np.clip(np.rint(rows / steps), *INT4_LEVELS)
    expected = columns @ rows[0].T

    def measure(values: Array) -> float:
        return float(np.square(columns @ (values * steps)[0].T - expected).sum())

    assert integers.min() >= -8
    assert integers.max() <= 7
    assert measure(integers) <= measure(nearest) * 1.0001
    assert share == pytest.approx(measure(integers) / measure(nearest), rel=1e-3)


def test_correlated_inputs_lose_most_of_the_error() -> None:
    columns, rows = correlated(600, 256), noise(1, 16, 256, seed=9)
    _, share = round_by_moments(rows, np.full_like(rows, 0.3), make_moments(columns), INT4_LEVELS)
    assert share < 0.5


def test_independent_inputs_keep_the_nearest_integers() -> None:
    rows = noise(1, 4, 16)
    steps = np.full_like(rows, 0.25)
    integers, share = round_by_moments(rows, steps, InputMoments(np.eye(16)[None]), INT4_LEVELS)
    np.testing.assert_array_equal(integers, np.clip(np.rint(rows / steps), *INT4_LEVELS))
    assert share == 1.0


def test_inputs_that_are_always_zero_are_no_obstacle() -> None:
    columns = correlated(64, 16)
    columns[:, 3] = 0.0
    rows = noise(1, 4, 16)
    for moments in (make_moments(columns), InputMoments(np.zeros((1, 16, 16)))):
        integers, _ = round_by_moments(rows, np.full_like(rows, 0.25), moments, INT4_LEVELS)
        assert np.abs(integers).max() <= 8


LAYERS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("MatMul", (3, 5, 8), (8, 6), {}),
    ("Gemm", (5, 8), (6, 8), {"transB": 1}),
    ("Gemm", (8, 5), (8, 6), {"transA": 1}),
    ("Conv", (2, 4, 7, 7), (6, 4, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", (2, 4, 7, 7), (6, 2, 3, 2), {"group": 2, "dilations": [2, 1]}),
    ("Conv", (1, 4, 6, 6), (4, 1, 3, 3), {"group": 4}),
]


@pytest.mark.parametrize(("op", "shape", "weight", "attributes"), LAYERS)
def test_a_layer_is_a_product_of_columns_and_rows(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    x, w = noise(*shape), noise(*weight, seed=1)
    model = build([node(op, ["x", "w"], "y", "layer", **attributes)], {"x": shape}, ["y"], {"w": w})
    index = GraphIndex(qdq.load(model))
    layout = find_layout(index, index.edge(index.by_label["layer"], 1))
    assert layout is not None
    np.testing.assert_array_equal(layout.from_rows(layout.to_rows(w)), w)
    columns = layout.to_columns(x, 1000)
    products = columns @ np.swapaxes(layout.to_rows(w), 1, 2)
    (expected,) = run(model, {"x": x})
    if op == "Conv":
        expected = np.moveaxis(expected, 1, -1).reshape(-1, layout.groups, products.shape[2])
        expected = np.moveaxis(expected, 1, 0)
    np.testing.assert_allclose(products.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    ((sums),) = [s for part in sum_second_moments(index, [("x", layout)], [{"x": x}] * 2) for s in part.values()]  # fmt: skip
    np.testing.assert_allclose(sums, 2 * np.swapaxes(columns, 1, 2) @ columns, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("attributes", [{"auto_pad": "SAME_UPPER"}])
def test_other_layers_have_no_layout(attributes: dict[str, Any]) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c", "conv", **attributes),
        node("ConvTranspose", ["c", "v"], "y", "up"),
    ]
    weights = {"w": noise(4, 4, 3, 3), "v": noise(4, 4, 2, 2)}
    index = GraphIndex(qdq.load(build(nodes, {"x": [1, 4, 6, 6]}, ["y"], weights)))
    for label in ("conv", "up"):
        assert find_layout(index, index.edge(index.by_label[label], 1)) is None


def network() -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    """Return two products of correlated inputs, and samples."""
    weights = {"a": noise(256, 64) / 16, "b": noise(8, 64, seed=1) / 8}
    nodes = [
        node("MatMul", ["x", "a"], "h"), node("Relu", ["h"], "r"),
        node("Gemm", ["r", "b"], "y", transB=1),
    ]  # fmt: skip
    columns = correlated(20 * 16, 256, seed=5)
    return build(nodes, {"x": [16, 256]}, ["y"], weights), [
        {"x": part} for part in columns.reshape(20, 16, 256)
    ]


@pytest.mark.parametrize("rules", ["tensorrt-int4", "tensorrt"])
def test_quantize_stores_the_integers_and_reports_the_gain(rules: str) -> None:
    model, samples = network()
    recovery = qdq.Recovery(guard=0.0, methods="off")
    options: dict[str, Any] = {"rules": rules, "targets": "rtx:sm86", "recovery": recovery}
    nearest = qdq.quantize(model, samples, store_weights="quantized", **options)
    rounded = qdq.quantize(model, samples, store_weights="gptq", **options)
    (step,) = rounded.recovery
    assert (step.method, step.places) == ("gptq", 1 if rules == "tensorrt-int4" else 2)
    assert step.is_kept == (step.after_db > step.before_db)
    if rules == "tensorrt-int4":
        assert step.after_db > step.before_db + 2
        assert rounded.model != nearest.model
    assert rounded.findings == ()
    assert qdq.check(rounded.model) == ()
    types = {t.name: t.data_type for t in rounded.model.graph.initializer}
    kind = TensorProto.INT4 if rules == "tensorrt-int4" else TensorProto.INT8
    assert types["a_quantized"] == kind
    scales = [
        {
            t.name: numpy_helper.to_array(t).tolist()
            for t in m.graph.initializer
            if "scale" in t.name
        }
        for m in (nearest.model, rounded.model)
    ]
    assert scales[0] == scales[1]
    ort.InferenceSession(rounded.model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_command_names_the_gain_and_needs_samples(tmp_path: Path) -> None:
    model, samples = network()
    path = save(model, tmp_path / "model.onnx")
    data = tmp_path / "samples.npz"
    np.savez(data, x=np.concatenate([sample["x"] for sample in samples]))
    out = tmp_path / "int4.onnx"
    options = ("--rules", "tensorrt-int4", "--target", "rtx:sm86", "--store-weights", "gptq")
    error = refused(tmp_path, "quantize", path, "-o", out, *options)
    assert "GPTQ rounds weights by samples. Pass --data or --images." in error
    code, text, _ = cli("quantize", path, "-o", out, *options, "--data", data, "--guard", "off")
    assert code == 0
    assert "gptq: 1 place" in text
