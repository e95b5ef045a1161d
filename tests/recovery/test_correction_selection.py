"""The guard: what does not help is dropped, by halves, with few measurements."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

import qdq
from qdq.graph.index import GraphIndex
from qdq.recovery.bias_correction import (
    BiasCorrections,
    apply_bias_corrections,
    find_bias_corrections,
)
from qdq.recovery.correction_selection import select_corrections
from qdq.recovery.output_snr import OutputSnr
from tests.support.graphs import Array, build, node, noise, random_feed

LAYERS = 4


def chain() -> onnx.ModelProto:
    weights = {f"w{i}": noise(3, 3, 1, 1, seed=i) + 0.2 for i in range(LAYERS)}
    nodes, read = [], "x"
    for i in range(LAYERS):
        nodes.append(node("Conv", [read, f"w{i}"], f"c{i}"))
        nodes.append(node("Relu", [f"c{i}"], f"r{i}"))
        read = f"r{i}"
    return build(nodes, {"x": [1, 3, 6, 6]}, [read], weights)


@pytest.fixture(scope="module")
def prepared() -> tuple[qdq.Quantized, BiasCorrections, list[dict[str, Array]]]:
    model = chain()
    samples = [random_feed(model, seed) for seed in range(4)]
    quantized = qdq.quantize(model, samples, method="max")
    corrections = find_bias_corrections(
        GraphIndex(quantized.source), quantized.plan, quantized.scales, samples, shrinkage=0.0
    )
    return quantized, corrections, samples


def corrected_layers(model: onnx.ModelProto) -> set[str]:
    """Return the outputs of the convolutions that have a bias."""
    return {n.output[0] for n in model.graph.node if n.op_type == "Conv" and len(n.input) > 2}


class Counted:
    """A measure that the corrections of some layers improve and those of others spoil."""

    def __init__(self, gains: dict[str, float]) -> None:
        self.gains = gains
        self.calls = 0

    def __call__(self, model: onnx.ModelProto) -> float:
        self.calls += 1
        return 20.0 + sum(self.gains.get(name, 0.0) for name in corrected_layers(model))


@pytest.mark.parametrize(
    ("gains", "kept", "measurements"),
    [
        ({"c0": 1.0, "c1": 1.0, "c2": -0.5, "c3": 1.0}, {"c0", "c1", "c2", "c3"}, 2),
        ({"c0": 1.0, "c1": 1.0, "c2": -9.0, "c3": 1.0}, {"c0", "c1", "c3"}, 6),
        ({"c0": -1.0, "c1": -1.0, "c2": -1.0, "c3": -1.0}, set(), 8),
        ({}, set(), 8),
    ],
)
def test_the_halves_that_help_stay(
    prepared: tuple[qdq.Quantized, BiasCorrections, list[dict[str, Array]]],
    gains: dict[str, float],
    kept: set[str],
    measurements: int,
) -> None:
    quantized, corrections, _ = prepared
    measure = Counted(gains)
    result = select_corrections(quantized.model, corrections, measure, most_measurements=16)

    assert {c.output for c in result.corrections.layers} == kept
    assert result.measurements == measure.calls == measurements
    assert result.before == 20.0
    assert result.after == pytest.approx(20.0 + sum(gains.get(name, 0.0) for name in kept))


@pytest.mark.parametrize(("noise_of_gains", "count"), [(0.1, LAYERS), (5.0, 0)])
def test_gains_within_the_noise_of_the_samples_do_not_count(
    prepared: tuple[qdq.Quantized, BiasCorrections, list[dict[str, Array]]],
    noise_of_gains: float,
    count: int,
) -> None:
    quantized, corrections, _ = prepared
    gains = 0.5 + noise_of_gains * np.array([-1.0, 1.0] * 4)

    def measure(model: onnx.ModelProto) -> Array:
        return 20.0 + gains * bool(corrected_layers(model))

    result = select_corrections(quantized.model, corrections, measure)

    assert len(result.corrections.layers) == count


def test_a_search_ends_at_its_budget(
    prepared: tuple[qdq.Quantized, BiasCorrections, list[dict[str, Array]]],
) -> None:
    quantized, corrections, _ = prepared
    measure = Counted({"c3": 1.0, "c0": -2.0, "c1": -2.0, "c2": -2.0})
    result = select_corrections(quantized.model, corrections, measure, most_measurements=3)

    assert measure.calls == 3
    assert result.corrections.layers == ()
    assert result.after == result.before


def test_a_measure_without_a_number_keeps_nothing(
    prepared: tuple[qdq.Quantized, BiasCorrections, list[dict[str, Array]]],
) -> None:
    quantized, corrections, _ = prepared
    result = select_corrections(quantized.model, corrections, lambda model: math.nan)

    assert result.corrections.layers == ()


def test_the_measured_output_never_gets_worse_on_its_samples(
    prepared: tuple[qdq.Quantized, BiasCorrections, list[dict[str, Array]]],
) -> None:
    quantized, corrections, samples = prepared
    snr = OutputSnr(GraphIndex(quantized.source), samples)
    result = select_corrections(quantized.model, corrections, snr.measure)
    after = apply_bias_corrections(quantized.model, result.corrections)

    assert snr.measure(after) == pytest.approx(result.after)
    assert result.after >= result.before == pytest.approx(snr.measure(quantized.model))


def test_the_ratio_is_that_of_the_energies() -> None:
    model = build(
        [node("Conv", ["x", "w"], "y")],
        {"x": [1, 1, 2, 2]},
        ["y"],
        {"w": np.ones((1, 1, 1, 1), np.float32)},
    )
    scaled = build(
        [node("Conv", ["x", "w"], "y")],
        {"x": [1, 1, 2, 2]},
        ["y"],
        {"w": np.full((1, 1, 1, 1), 1.1, np.float32)},
    )
    snr = OutputSnr(GraphIndex(qdq.load(model)), [random_feed(model)])

    assert snr.measure(scaled) == pytest.approx(20.0, abs=1e-3)
    assert snr.measure(model) == 150.0


def test_each_sample_has_its_ratio() -> None:
    model = build([node("Relu", ["x"], "y")], {"x": [1, 2]}, ["y"])
    shifted = build(
        [node("Relu", ["x"], "r"), node("Add", ["r", "d"], "y")],
        {"x": [1, 2]}, ["y"], {"d": np.float32([1.0, 0.0])},
    )  # fmt: skip
    samples = [{"x": np.float32([[10.0, 0.0]])}, {"x": np.float32([[0.0, 100.0]])}]
    snr = OutputSnr(GraphIndex(qdq.load(model)), samples)

    assert snr.measure_samples(shifted) == pytest.approx([20.0, 40.0])
    assert snr.measure(shifted) == pytest.approx(10 * np.log10(10100 / 2))
    assert list(snr.measure_samples(model)) == [150.0, 150.0]


def test_an_output_of_another_shape_or_without_numbers_is_no_better_than_any_other() -> None:
    model = build([node("Relu", ["x"], "y")], {"x": [1, 2]}, ["y"])
    wider = build([node("Concat", ["x", "x"], "y", axis=1)], {"x": [1, 2]}, ["y"])
    broken = build([node("Div", ["x", "z"], "y")], {"x": [1, 2]}, ["y"], {"z": np.float32(0)})
    snr = OutputSnr(GraphIndex(qdq.load(model)), [{"x": np.float32([[1.0, 0.0]])}])

    assert snr.measure(wider) == snr.measure(broken) == -150.0


def test_a_model_without_float_outputs_has_no_ratio() -> None:
    model = build([node("Shape", ["x"], "y")], {"x": [1, 2]}, {"y": [2]})
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    snr = OutputSnr(GraphIndex(qdq.load(model)), [{"x": np.float32([[1.0, 0.0]])}])

    assert math.isnan(snr.measure(model))
