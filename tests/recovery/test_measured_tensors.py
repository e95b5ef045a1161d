"""The tensors at which errors are measured: the outputs, or what a Softmax before them reads."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto

from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.recovery.measured_tensors import find_measured_tensors
from tests.support.graphs import build, node, noise

WEIGHTS = {"w": noise(4, 4), "shape": np.array([4, 2])}


def measured(*nodes: NodeProto) -> tuple[str, ...]:
    model = build([node("MatMul", ["x", "w"], "m"), *nodes], {"x": [2, 4]}, ["y"], WEIGHTS)
    return find_measured_tensors(GraphIndex(load(model)))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_the_input_of_a_saturating_operator_is_measured(op: str) -> None:
    assert measured(node(op, ["m"], "y")) == ("m",)


def test_operators_that_only_move_values_may_follow_it() -> None:
    assert measured(node("Softmax", ["m"], "s"), node("Reshape", ["s", "shape"], "y")) == ("m",)


def test_other_outputs_are_measured_themselves() -> None:
    assert measured(node("Softmax", ["m"], "s"), node("Relu", ["s"], "y")) == ("y",)


def test_outputs_of_integers_are_not_measured() -> None:
    model = build(
        [
            node("MatMul", ["x", "w"], "m"),
            node("Relu", ["m"], "y"),
            node("ArgMax", ["m"], "best", axis=1),
        ],
        {"x": [2, 4]},
        ["y"],
        WEIGHTS,
    )
    model.graph.output.add(name="best").type.tensor_type.elem_type = 7

    assert find_measured_tensors(GraphIndex(load(model))) == ("y",)
