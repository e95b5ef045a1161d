"""Sessions of models at which ONNX Runtime's own optimizations fail."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.runtime.session import open_session
from tests.support.graphs import build, noise


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
