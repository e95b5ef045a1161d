"""Sessions of models at which ONNX Runtime's own optimizations fail."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.precision.cast_model import cast
from qdq.runtime.session import exact_options, open_session
from tests.support.graphs import build, noise
from tests.support.pair_models import pair


def two_convolutions_added() -> onnx.ModelProto:
    """Return y = Sigmoid(a + b), both convolutions of x [1,2,6,6], `a` with a bias."""
    return build(
        [
            onnx.helper.make_node("Conv", ["x", "v", "bias"], ["a"], pads=[1, 1, 1, 1]),
            onnx.helper.make_node("Conv", ["x", "w"], ["b"]),
            onnx.helper.make_node("Add", ["a", "b"], ["sum"]),
            onnx.helper.make_node("Sigmoid", ["sum"], ["y"]),
        ],
        {"x": [1, 2, 6, 6]},
        {"y": [1, 2, 6, 6]},
        {"v": noise(2, 2, 3, 3), "bias": noise(2), "w": noise(2, 2, 1, 1)},
    )


@pytest.mark.parametrize("tensor", ["a", "b", "sum"])
def test_every_tensor_around_added_convolutions_can_be_observed(tensor: str) -> None:
    # ONNX Runtime 1.31 loses `a` at its highest level of optimization.
    session = open_session(GraphIndex(load(two_convolutions_added())), [tensor])
    x = np.ones((1, 2, 6, 6), np.float32)
    y, values = session.run(["y", tensor], {"x": x})
    assert values.shape == y.shape


def test_biases_of_an_fp16_model_with_pairs_do_not_overflow() -> None:
    # ONNX Runtime 1.31 divides the bias, 1.5, by the product of both scales, 1e-5, in FP16.
    conv = onnx.helper.make_node("Conv", ["x_dq", "w_dq", "bias"], ["a"])
    relu = onnx.helper.make_node("Relu", ["a_dq"], ["y"])
    model = build(
        [*pair("x", "s"), *pair("w", "t"), conv, *pair("a", "u"), relu],
        {"x": [1, 1, 1, 1]},
        {"y": [1, 1, 1, 1]},
        {
            "w": np.full((1, 1, 1, 1), 0.05, np.float32),
            "bias": np.float32([1.5]),
            "s": np.float32(0.02),
            "t": np.float32(0.0005),
            "u": np.float32(0.05),
            "z": np.int8(0),
        },
        opset=19,
    )
    session = open_session(GraphIndex(load(cast(model).model)), [], exact_options())
    (output,) = session.run(None, {"x": np.ones((1, 1, 1, 1), np.float32)})
    np.testing.assert_allclose(output, 1.55, rtol=2e-3)
