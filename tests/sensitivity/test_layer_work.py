"""Multiply-accumulates, against numbers that were counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.sensitivity.layer_work import count_work, measure_shapes
from tests.observers.test_uncomputable_tensors import at_the_end
from tests.support.body_models import branching
from tests.support.graphs import Array, build, node, noise


def work_of(model: onnx.ModelProto, **feed: Array) -> dict[str, int]:
    """Return the work of the weighted nodes of a model for a sample."""
    index = GraphIndex(load(model))
    return count_work(index, measure_shapes(index, index.outputs, feed))


def of_one(op: str, shape: list[Any], weight: Array, size: tuple[int, ...], **more: Any) -> int:
    """Return the work of a model of one node that reads x and a weight, for an x of a size."""
    model = build([node(op, ["x", "w"], "y", "layer", **more)], {"x": shape}, ["y"], {"w": weight})
    return work_of(model, x=noise(*size))["layer"]


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_convolution_multiplies_each_result_with_each_tap(dynamic: bool) -> None:
    shape = ["n", 3, "h", "w_"] if dynamic else [2, 3, 8, 8]
    work = of_one("Conv", shape, noise(4, 3, 3, 3), (2, 3, 8, 8), pads=[1, 1, 1, 1])
    assert work == 2 * 4 * 8 * 8 * (3 * 3 * 3)


def test_strides_and_groups_of_a_convolution_count() -> None:
    assert of_one("Conv", [1, 4, 8, 8], noise(4, 1, 3, 3), (1, 4, 8, 8), group=4) == 4 * 6 * 6 * 9
    strided = of_one("Conv", [1, 4, 8, 8], noise(6, 2, 2, 2), (1, 4, 8, 8), group=2, strides=[2, 2])
    assert strided == 6 * 4 * 4 * (2 * 2 * 2)


@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((5, 7), (7, 3), {}),
        ((5, 7), (3, 7), {"transB": 1}),
        ((7, 5), (7, 3), {"transA": 1}),
        ((7, 5), (3, 7), {"transA": 1, "transB": 1}),
    ],
)
def test_a_gemm_of_any_orientation(
    shape: tuple[int, int], weight: tuple[int, int], attributes: dict[str, int]
) -> None:
    assert of_one("Gemm", list(shape), noise(*weight), shape, **attributes) == 5 * 7 * 3


def test_a_product_of_batches() -> None:
    assert of_one("MatMul", ["b", 5, 7], noise(7, 3), (4, 5, 7)) == 4 * 5 * 7 * 3
    model = build(
        [node("MatMul", ["x", "z"], "y", "layer")], {"x": [2, 5, 7], "z": [2, 7, 3]}, ["y"]
    )
    assert work_of(model, x=noise(2, 5, 7), z=noise(2, 7, 3)) == {"layer": 2 * 5 * 7 * 3}


def test_a_product_with_a_vector_counts_its_sums() -> None:
    assert of_one("MatMul", [5, 7], noise(7), (5, 7)) == 5 * 7
    assert of_one("MatMul", [7], noise(7, 3), (7,)) == 7 * 3


def test_a_transposed_convolution_multiplies_each_input_with_each_tap() -> None:
    weight = noise(4, 3, 2, 2)
    work = of_one("ConvTranspose", [1, 4, 5, 5], weight, (1, 4, 5, 5), strides=[2, 2])
    assert work == 4 * 5 * 5 * (3 * 2 * 2)
    grouped = of_one(
        "ConvTranspose", [1, 4, 5, 5], noise(4, 1, 2, 2), (1, 4, 5, 5), strides=[2, 2], group=2
    )
    assert grouped == 4 * 5 * 5 * (1 * 2 * 2)


def test_an_einsum_sums_over_the_labels_that_the_result_lacks() -> None:
    model = build(
        [node("Einsum", ["x", "w"], "y", "layer", equation="bij,jk->bik")],
        {"x": [2, 5, 7]}, ["y"], {"w": noise(7, 3)},
    )  # fmt: skip
    assert work_of(model, x=noise(2, 5, 7)) == {"layer": 2 * 5 * 7 * 3}


def test_a_recurrent_layer_multiplies_inputs_and_states_in_every_step() -> None:
    hidden, inputs, steps, batch = 3, 5, 6, 2
    weights = {"w": noise(1, 4 * hidden, inputs), "r": noise(1, 4 * hidden, hidden)}
    model = build(
        [node("LSTM", ["x", "w", "r"], "y", "layer", hidden_size=hidden)],
        {"x": [steps, batch, inputs]}, ["y"], weights,
    )  # fmt: skip
    work = work_of(model, x=noise(steps, batch, inputs))
    assert work == {"layer": steps * batch * 4 * hidden * (inputs + hidden)}


def test_shapes_that_depend_on_values_are_measured() -> None:
    nodes = [
        node("NonZero", ["x"], "places"),
        node("Cast", ["places"], "f", to=1),
        node("Transpose", ["f"], "t", perm=[1, 0]),
        node("MatMul", ["t", "w"], "y", "layer"),
    ]
    model = build(nodes, {"x": [4, 4]}, {"y": ["n", 3]}, {"w": noise(2, 3)})
    assert work_of(model, x=np.eye(4, dtype=np.float32)) == {"layer": 4 * 2 * 3}
    assert work_of(model, x=np.ones((4, 4), np.float32)) == {"layer": 16 * 2 * 3}
    with pytest.raises(DataError, match="failed on a sample"):
        work_of(model, x=np.ones((4, 4), np.float64))


def test_layers_in_bodies_count_with_the_shapes_that_are_stated() -> None:
    work = work_of(branching(), x=noise(2, 4), c=np.array(True))
    assert sorted(work.values()) == [32, 32, 32]
    assert len(work) == 3


def test_a_layer_after_a_plugin_counts_nothing_and_the_others_do() -> None:
    model = at_the_end("Nms")
    index = GraphIndex(load(model))
    work = count_work(index, measure_shapes(index, ["b"], {"x": noise(1, 3, 6, 6)}))
    assert work == {"a_node": 4 * 4 * 4 * 27, "b_node": 4 * 4 * 4 * 4}
