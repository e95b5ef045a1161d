"""Nodes without names, whose labels in a model's metadata are positions, in a cast model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qdq
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.metadata import LEAVE_FLOAT_KEY, SENSITIVE_KEY
from qdq.precision.moved_labels import move_labels
from tests.support.graphs import build, noise


def two_unnamed_convolutions() -> onnx.ModelProto:
    """Return y = Conv(Relu(Conv(x))) of [1, 4, 8, 8], whose nodes have no names."""
    return build(
        [
            onnx.helper.make_node("Conv", ["x", "v"], ["a"]),
            onnx.helper.make_node("Relu", ["a"], ["b"]),
            onnx.helper.make_node("Conv", ["b", "w"], ["y"]),
        ],
        {"x": [1, 4, 8, 8]},
        {"y": [1, 4, 8, 8]},
        {"v": noise(4, 4, 1, 1), "w": noise(4, 4, 1, 1, seed=1)},
        opset=19,
    )


def read_entry(model: onnx.ModelProto, key: str) -> str:
    (value,) = (entry.value for entry in model.metadata_props if entry.key == key)
    return value


@pytest.mark.parametrize("float_type", ["fp32", "fp16"])
def test_what_was_left_in_float_by_position_is_no_finding(float_type: str) -> None:
    data = [{"x": np.ones((1, 4, 8, 8), np.float32)}]
    quantized = qdq.quantize(
        two_unnamed_convolutions(), data, leave_float="#2", float_type=float_type
    )
    assert not quantized.findings
    assert not qdq.check(quantized.model)
    stripped = GraphIndex(load(qdq.strip(quantized.model)))
    label = read_entry(quantized.model, LEAVE_FLOAT_KEY)
    assert stripped.by_label[label].inputs[1] == "w"


def test_the_gains_of_sensitive_layers_stay_with_their_nodes() -> None:
    before = two_unnamed_convolutions()
    entries = {SENSITIVE_KEY: "2.5 dB: #2\n1.25 dB: #0", LEAVE_FLOAT_KEY: "#1\n/head/*"}
    onnx.helper.set_model_props(before, entries)
    cast_model = qdq.cast(before).model
    assert read_entry(cast_model, SENSITIVE_KEY) == "2.5 dB: #3\n1.25 dB: #1"
    assert read_entry(cast_model, LEAVE_FLOAT_KEY) == "#2\n/head/*"
    assert qdq.cast(cast_model).model == cast_model


def test_labels_stay_where_the_models_have_other_nodes() -> None:
    before = two_unnamed_convolutions()
    onnx.helper.set_model_props(before, {SENSITIVE_KEY: "2.5 dB: #2"})
    after = onnx.ModelProto()
    after.CopyFrom(before)
    after.graph.node[1].op_type = "Tanh"
    move_labels(after, GraphIndex(load(before)), GraphIndex(load(after)))
    assert read_entry(after, SENSITIVE_KEY) == "2.5 dB: #2"
