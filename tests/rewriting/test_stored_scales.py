"""Scales in the type that a file stores: those of float16 tensors keep the tensor's resolution."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import qdq
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8
from qdq.ranges.given_ranges import given_by_hand
from qdq.rewriting.stored_scales import store_scales
from tests.support.graphs import Array, build, initializer, noise, run
from tests.support.graphs import node as make_node

#: The smallest float16 above 0.
STEP = 2.0**-24


def half_convolution(weight: Array, opset: int = 19) -> onnx.ModelProto:
    """Return a Conv of a float16 input of 4 channels with a weight, cast to float32."""
    nodes = [
        make_node("Conv", ["x", "w"], "c", pads=[1] * 4),
        make_node("Cast", ["c"], "y", to=TensorProto.FLOAT),
    ]
    weights = {"w": weight.astype(np.float16)}
    model = build(
        nodes, {"x": [1, 4, 6, 6]}, ["y"], weights, opset=opset, ir=9, dtype=TensorProto.FLOAT16
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def samples(amplitude: float) -> list[dict[str, Array]]:
    return [
        {"x": (noise(1, 4, 6, 6, seed=seed) * amplitude).astype(np.float16)} for seed in range(4)
    ]


def channel_snr(model: onnx.ModelProto, quantized: onnx.ModelProto, amplitude: float) -> float:
    """Return the least SNR of an output channel over the samples, in dB."""
    signal, error = np.zeros(4), np.zeros(4)
    for feed in samples(amplitude):
        expected = run(model, feed)[0].astype(np.float64)
        actual = run(quantized, feed)[0].astype(np.float64)
        signal += np.square(expected).sum((0, 2, 3))
        error += np.square(expected - actual).sum((0, 2, 3))
    return float((10 * np.log10(signal / np.maximum(error, 1e-300))).min())


@pytest.mark.parametrize("method", ["auto", "max"])
def test_small_channels_of_a_float16_weight_keep_their_levels(method: str) -> None:
    gains = np.array([1.0, 2.0**-6, 2.0**-10, 2.0**-13]).reshape(4, 1, 1, 1)
    model = half_convolution(noise(4, 4, 3, 3, seed=1) * 0.2 * gains)
    result = qdq.quantize(model, samples(64.0), method=method)
    scales = initializer(result.model, "w_scale")
    assert scales.dtype == np.float16
    assert scales[3] < np.finfo(np.float16).tiny
    assert channel_snr(model, result.model, 64.0) > 33


@pytest.mark.parametrize("amplitude", [1.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_a_small_float16_activation_keeps_its_levels(amplitude: float) -> None:
    model = half_convolution(noise(4, 4, 3, 3, seed=1) * 4)
    result = qdq.quantize(model, samples(amplitude))
    assert channel_snr(model, result.model, amplitude) > 33


@pytest.mark.parametrize("opset", [17, 19])
def test_an_activation_at_the_end_of_float16_stays_finite(opset: int) -> None:
    model = half_convolution(noise(4, 4, 3, 3, seed=1) * 1e-3, opset)
    feeds = samples(1.0)
    feeds[0]["x"][0, 0, 0, :2] = 65504, -65504
    result = qdq.quantize(model, feeds, method="max")
    (output,) = run(result.model, feeds[0])
    (expected,) = run(model, feeds[0])
    assert np.isfinite(output).all()
    assert np.abs(output - expected).max() < 0.02 * np.abs(expected).max()


def test_a_range_beyond_float16_gets_the_largest_scale_that_float16_can_use() -> None:
    model = half_convolution(noise(4, 4, 3, 3, seed=1))
    result = qdq.quantize(model, None, given=given_by_hand({"x": 1e9}))
    assert initializer(result.model, "x_scale") == 515.5


def test_subnormal_scales_of_a_quantized_model_stay_bit_for_bit() -> None:
    model = half_convolution(noise(4, 4, 3, 3, seed=1) * 1e-3)
    once = qdq.quantize(model, samples(1e-4)).model
    again = qdq.quantize(once, None).model
    for name in ("x_scale", "w_scale"):
        assert initializer(once, name).tobytes() == initializer(again, name).tobytes()
        assert initializer(once, name).max() < np.finfo(np.float16).tiny


@pytest.mark.parametrize(
    ("scale", "stored"),
    [
        (0.03125, 0.03125),
        (STEP, STEP),
        (STEP / 100, STEP),
        (1.01 * STEP, 2 * STEP),  # 1 step would clip 1 percent
        (5.4 * STEP, 6 * STEP),
        (200.1 * STEP, 200 * STEP),  # half a step of INT8 is 0.4 percent
        (1e6, 515.5),
    ],
)
def test_a_float16_scale_is_rounded_to_the_side_that_does_not_clip(
    scale: float, stored: float
) -> None:
    (value,) = store_scales([scale], ELEMENT_TYPES[INT8], np.dtype(np.float16))
    assert float(value) == stored


@pytest.mark.parametrize("dtype", [INT8, E4M3])
def test_the_largest_float16_scale_dequantizes_to_finite_values(dtype: str) -> None:
    element = ELEMENT_TYPES[dtype]
    (value,) = store_scales([1e6], element, np.dtype(np.float16))
    larger = np.nextafter(value, np.float16(np.inf))
    assert float(value) * element.largest <= 65504 < float(larger) * element.largest


def test_a_float32_scale_is_stored_as_it_is_and_never_denormal() -> None:
    scales = store_scales([0.1, math.ldexp(1, -140)], ELEMENT_TYPES[INT8], np.dtype(np.float32))
    assert scales.dtype == np.float32
    assert scales.tolist() == [float(np.float32(0.1)), 2.0**-126]
