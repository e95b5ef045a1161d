"""TensorRT's own Q/DQ operators, read as ONNX's."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.errors import ModelError
from tests.support.body_models import graph
from tests.support.graphs import build, node, noise, run, value

ADA = (qdq.parse_target("rtx:sm89"),)
W = noise(16, 8, seed=1)
CONSTANTS = {"xs": np.array(0.01, np.float32), "ws": np.full(8, 0.01, np.float32), "w": W}


def half(op: str, tensor: str, scale: str, result: str, **more: int) -> onnx.NodeProto:
    """Return a Q or DQ in TensorRT's domain."""
    return node(op, [tensor, scale], result, domain="trt", **more)


def fp8_nodes(prefix: str = "") -> list[onnx.NodeProto]:
    """Return a MatMul of x and w between FP8 pairs, with names after a prefix."""
    return [
        half("TRT_FP8QuantizeLinear", "x", "xs", f"{prefix}xq"),
        half("TRT_FP8DequantizeLinear", f"{prefix}xq", "xs", f"{prefix}xd"),
        half("TRT_FP8QuantizeLinear", "w", "ws", f"{prefix}wq", axis=1),
        half("TRT_FP8DequantizeLinear", f"{prefix}wq", "ws", f"{prefix}wd", axis=1),
        node("MatMul", [f"{prefix}xd", f"{prefix}wd"], f"{prefix}y", name="product"),
    ]


def fp8() -> onnx.ModelProto:
    """Return the nodes at opset 17, which has no FP8."""
    return build(fp8_nodes(), {"x": [4, 16]}, {"y": [4, 8]}, CONSTANTS, domains={"trt": 1})


def test_fp8_pairs_are_read_as_onnxs() -> None:
    source = qdq.load(fp8())
    operators = {(n.domain, n.op_type) for n in source.model.graph.node}
    assert operators == {("", "QuantizeLinear"), ("", "DequantizeLinear"), ("", "MatMul")}
    assert [entry.domain for entry in source.model.opset_import] == [""]
    assert source.notes[0] == "opset raised from 17 to 19, which FP8 Q/DQ needs"
    onnx.checker.check_model(source.model, full_check=True)
    rounded = (np.clip(W / 0.01, -448, 448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    x = np.ones((4, 16), np.float32) * np.float32(0.32)
    np.testing.assert_allclose(run(source.model, {"x": x})[0], x @ rounded * 0.01, rtol=1e-4)


def test_fp8_pairs_are_checked_stripped_and_repaired() -> None:
    assert qdq.check(fp8(), targets=ADA) == ()
    stripped = qdq.strip(fp8())
    assert [n.op_type for n in stripped.graph.node] == ["MatMul"]
    repaired = qdq.quantize(fp8(), None, targets=ADA)
    scales = {scale.tensor: scale.scales for scale in repaired.scales.by_pair}
    assert scales["x"] == pytest.approx((0.01,))
    assert scales["w"] == pytest.approx((0.01,) * 8)


def test_pairs_in_bodies_are_read_too() -> None:
    branches = {}
    for name in ("then", "else"):
        branches[f"{name}_branch"] = graph(fp8_nodes(name), [value(f"{name}y", [4, 8])])
    model = build(
        [node("If", ["c"], "y", name="if", **branches)],
        {"x": [4, 16]},
        {"y": [4, 8]},
        CONSTANTS,
        domains={"trt": 1},
    )
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    assert qdq.check(model, targets=ADA) == ()
    repaired = qdq.quantize(model, None, targets=ADA)
    scales = {scale.tensor: scale.scales for scale in repaired.scales.by_pair}
    assert scales["if.then_branch/w"] == pytest.approx((0.01,) * 8)


@pytest.mark.parametrize("op", ["TRT_INT4DequantizeLinear", "DequantizeLinear"])
def test_stored_int4_weights_become_floats(op: str) -> None:
    integers = np.arange(64).reshape(16, 4) % 15 - 7
    stored = helper.make_tensor("i", TensorProto.INT4, [16, 4], integers.ravel().tolist())
    model = build(
        [half(op, "i", "s", "w", axis=0, block_size=8), node("MatMul", ["x", "w"], "y")],
        {"x": [2, 16]},
        {"y": [2, 4]},
        {"s": np.array([[0.5] * 4, [0.25] * 4], np.float32)},
        domains={"trt": 1},
        ir=10,
    )
    model.graph.initializer.append(stored)
    (weight,) = qdq.strip(model).graph.initializer
    expected = integers * np.repeat([0.5, 0.25], 8)[:, None]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), expected)


def test_operators_that_onnx_lacks_are_named() -> None:
    quantizer = node("TRT_FP4DynamicQuantize", ["x", "s"], ["q", "qs"], name="fp4", domain="trt")
    model = build(
        [quantizer, node("MatMul", ["q", "w"], "y")],
        {"x": [4, 16]},
        {"y": [4, 8]},
        {"w": W, "s": np.array(1, np.float32)},
        domains={"trt": 1},
    )
    with pytest.raises(ModelError, match=r"fp4 \(TRT_FP4DynamicQuantize\) has no float form"):
        qdq.strip(model)
