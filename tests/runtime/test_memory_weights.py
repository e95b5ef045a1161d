"""A session that reads weights from memory computes what one of the whole file computes."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.runtime.memory_weights import take_out_weights
from qdq.runtime.session import open_session

#: 256 * 256 values: large enough to be taken out in each type.
SIDE = 256


def make_model(dtype: type) -> onnx.ModelProto:
    elem = {np.float32: "float", np.float16: "float16"}[dtype]
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        f"g ({elem}[N, {SIDE}] x) => ({elem}[N, {SIDE}] y) {{ t = MatMul (x, w) y = Add (t, b) }}"
    )
    random = np.random.default_rng(0)
    for name, shape in (("w", (SIDE, SIDE)), ("b", (SIDE,))):
        values = random.standard_normal(shape).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_outputs_are_those_of_the_file(dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(make_model(dtype), path)
    sample = {"x": np.random.default_rng(1).standard_normal((3, SIDE)).astype(dtype)}

    session = open_session(GraphIndex(load(path)), ["t"])
    gc.collect()  # the session keeps the memory of its weights
    outputs = session.run(["y", "t"], sample)

    expected = ort.InferenceSession(path).run(["y"], sample)[0]
    np.testing.assert_array_equal(outputs[0], expected)
    assert outputs[1].shape == (3, SIDE)


def test_large_plain_weights_are_taken_out() -> None:
    model = make_model(np.float32)
    before = model.SerializeToString()

    light_model, weights = take_out_weights(model)

    assert list(weights) == ["w"]
    assert light_model.ByteSize() < SIDE * SIDE
    np.testing.assert_array_equal(
        weights["w"].numpy(), numpy_helper.to_array(model.graph.initializer[0])
    )
    assert model.SerializeToString() == before


@pytest.mark.parametrize("kind", ["listed", "bfloat16", "external"])
def test_other_weights_stay_in_the_model(kind: str) -> None:
    model = make_model(np.float32)
    tensor = model.graph.initializer[0]
    if kind == "listed":
        tensor.CopyFrom(
            onnx.helper.make_tensor("w", TensorProto.FLOAT, [SIDE, SIDE], np.ones(SIDE * SIDE))
        )
    elif kind == "bfloat16":
        tensor.data_type = TensorProto.BFLOAT16
    else:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")

    light_model, weights = take_out_weights(model)

    assert not weights
    assert light_model.SerializeToString() == model.SerializeToString()
