"""The mean errors of layers: averaged over samples, shrunk where these disagree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qdq
from qdq.graph.index import GraphIndex
from qdq.recovery.bias_slots import find_bias_slots
from qdq.recovery.mean_errors import MeanErrors
from tests.support.graphs import Array, build, node, noise


def scaled(factor: float, opset: int = 17) -> onnx.ModelProto:
    """Return a convolution that multiplies its one channel."""
    return build(
        [node("Conv", ["x", "w"], "y")], {"x": [1, 1, 2, 2]}, ["y"],
        {"w": np.full((1, 1, 1, 1), factor, np.float32)}, opset=opset,
    )  # fmt: skip


def measure(samples: list[float], opset: int = 17) -> MeanErrors:
    """Return the errors of a model that halves, measured as that of a model that doubles."""
    index = GraphIndex(qdq.load(scaled(2.0, opset)))
    feeds: list[dict[str, Array]] = [
        {"x": np.full((1, 1, 2, 2), value, np.float32)} for value in samples
    ]
    plan = qdq.quantize(scaled(2.0, opset), feeds).plan
    errors = MeanErrors(index, scaled(0.5, opset), tuple(find_bias_slots(index, plan)))
    errors.add_samples(feeds)
    return errors


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_samples_that_agree_give_their_mean(opset: int) -> None:
    errors = measure([4.0, 4.0, 4.0], opset)

    assert errors.samples == 3
    assert errors.estimate()["y_node"] == pytest.approx([6.0])


def test_samples_that_disagree_give_less() -> None:
    errors = measure([2.0, 4.0])  # errors 3 and 6: mean 4.5, variance of the mean 2.25

    assert errors.estimate(shrinkage=0.0)["y_node"] == pytest.approx([4.5])
    assert errors.estimate(shrinkage=1.0)["y_node"] == pytest.approx([4.5 - 2.25 / 4.5])


def test_a_mean_within_its_noise_is_none() -> None:
    assert measure([1.0, -1.0, 0.5, -0.6]).estimate()["y_node"] == pytest.approx([0.0])


def test_one_sample_gives_its_own_error() -> None:
    assert measure([4.0]).estimate()["y_node"] == pytest.approx([6.0])


def test_a_later_layer_reads_the_corrected_output_of_an_earlier_layer() -> None:
    weights = {"w": noise(2, 2, 1, 1), "v": noise(2, 2, 1, 1, seed=1)}
    nodes = [node("Conv", ["x", "w"], "a"), node("Conv", ["a", "v"], "y")]
    model = build(nodes, {"x": [1, 2, 2, 2]}, ["y"], weights)
    changed = build(nodes, {"x": [1, 2, 2, 2]}, ["y"], {**weights, "w": weights["w"] * 2})
    index = GraphIndex(qdq.load(model))
    feed = {"x": np.ones((1, 2, 2, 2), np.float32)}
    slots = tuple(find_bias_slots(index, qdq.quantize(model, [feed]).plan))

    by_shift = {}
    for shifts in (True, False):
        errors = MeanErrors(index, changed, slots, shifts=shifts)
        errors.add_samples([feed])
        by_shift[shifts] = errors.estimate()

    assert by_shift[True]["a_node"] == pytest.approx(by_shift[False]["a_node"])
    assert by_shift[True]["y_node"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert abs(by_shift[False]["y_node"]).max() > 0.1
