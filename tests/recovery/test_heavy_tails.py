"""Ranges that a few enormous values reach end where the bulk of the values does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

import qdq
from tests.support.graphs import build, noise

#: The column that has an enormous value in one row.
MASSIVE = 3


def massive_network(is_bounded: bool = True) -> ModelProto:
    """Return two products with a Relu between; bounds make an enormous result like a large one."""
    result = "b" if is_bounded else "y"
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], [result], name="second"),
    ]
    if is_bounded:
        nodes.append(helper.make_node("Clip", ["b", "low", "high"], ["y"]))
    weights = {"v": np.eye(16, dtype=np.float32), "w": noise(16, 8, seed=1)}
    bounds = {"low": np.array(-9.0, np.float32), "high": np.array(9.0, np.float32)}
    return build(
        nodes,
        {"x": [1, 600, 16]},
        {"y": [1, 600, 8]},
        weights | (bounds if is_bounded else {}),
    )


def massive_samples(largest: float) -> list[dict[str, Any]]:
    """Return samples of which every other one has an enormous value."""
    samples: list[dict[str, Any]] = []
    for seed in range(4):
        values = np.abs(noise(1, 600, 16, seed=seed))
        if seed % 2:
            values[0, 0, MASSIVE] = largest
        samples.append({"x": values})
    return samples


def scale_of(result: qdq.Quantized, tensor: str) -> float:
    """Return the scale of an activation."""
    (pair,) = (item for item in result.scales.by_pair if item.tensor == tensor)
    return pair.scales[0]


@pytest.fixture(scope="module")
def plain() -> qdq.Quantized:
    """Return the network without recovery."""
    off = qdq.Recovery(guard=False, methods="off")
    return qdq.quantize(massive_network(), massive_samples(400.0), recovery=off)


def test_a_massive_value_is_clipped_where_that_is_better(plain: qdq.Quantized) -> None:
    clip = qdq.Recovery(guard=False, methods="clip")
    result = qdq.quantize(massive_network(), massive_samples(400.0), recovery=clip)
    (step,) = result.recovery
    assert (step.method, step.is_kept) == ("clip", True)
    assert step.after_db > step.before_db
    assert scale_of(result, "r") < scale_of(plain, "r") / 2


def test_a_tail_that_matters_stays() -> None:
    clip = qdq.Recovery(guard=False, methods="clip")
    result = qdq.quantize(massive_network(False), massive_samples(400.0), recovery=clip)
    (step,) = result.recovery
    assert (step.method, step.is_kept) == ("clip", False)


def test_ordinary_values_have_no_heavy_tail() -> None:
    clip = qdq.Recovery(guard=False, methods="clip")
    result = qdq.quantize(massive_network(), massive_samples(1.0), recovery=clip)
    assert result.recovery == ()


def test_a_method_of_the_users_choice_stays() -> None:
    clip = qdq.Recovery(guard=False, methods="clip")
    result = qdq.quantize(massive_network(), massive_samples(400.0), method="mse", recovery=clip)
    assert result.recovery == ()
