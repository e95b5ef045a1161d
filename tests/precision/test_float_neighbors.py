"""Nodes that stay in FP32 beside others, so that fewer Casts are needed."""

from __future__ import annotations

import onnx
import pytest

import qdq
from qdq.graph.bodies import all_nodes
from qdq.graph.source import canonical_bytes

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
SLICED = """
g (float[1,4] x) => (float[1,2] y)
<float[4,8] w, float[2,2] v, int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] one = {1}>
{ [p] p = MatMul (x, w)
  [s] s = Slice (p, zero, two, one)
  [t] t = Slice (p, two, four, one)
  [a] a = Exp (s)
  [b] b = BODY
  [m] m = Max (a, b)
  [last] y = MatMul (m, v) }
"""
SUMS = """
g (float[1,4] x) => (float[1,4] y)
<float[4,4] w, float[1] c = {2}>
{ [p] p = MatMul (x, w)
  [exp] e = Exp (p)
  [scaled] s = Mul (e, c)
  [turned] t = Reshape (s, shape)
  [y] y = OPERANDS }
""".replace("float[1] c = {2}", "float[1] c = {2}, int64[2] shape = {1, 4}")


def parse(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text)
    for tensor in model.graph.initializer:
        if not tensor.ByteSize() > 20 and tensor.name in ("w", "v"):
            size = 4
            for dim in tensor.dims:
                size *= dim
            tensor.raw_data = bytes(size)
    return model


def cast(text: str) -> tuple[list[str], int]:
    """Return the names of the kept nodes, and the number of Casts."""
    result = qdq.cast(parse(text))
    again = qdq.cast(result.model)
    assert canonical_bytes(again.model) == canonical_bytes(result.model)
    nodes = [node for _, node in all_nodes(result.model.graph)]
    return [kept.node for kept in result.plan.kept], sum(n.op_type == "Cast" for n in nodes)


def test_cuts_for_several_readers_in_fp32_share_one_cast() -> None:
    kept, casts = cast(SLICED.replace("BODY", "Exp (t)"))

    assert kept == ["s", "t", "a", "b"]
    assert casts == 5  # x, p, a, b and y


def test_a_cut_for_one_reader_is_in_16_bits() -> None:
    kept, casts = cast(SLICED.replace("BODY", "Relu (t)"))

    assert kept == ["a"]
    assert casts == 4  # x, s, a and y


@pytest.mark.parametrize(
    ("operands", "expected", "casts"),
    [
        ("Add (t, e)", ["exp", "scaled", "turned", "y"], 2),
        ("Add (t, p)", ["exp"], 4),
        ("MatMul (t, w)", ["exp"], 4),
    ],
)
def test_arithmetic_between_fp32_and_an_output_stays_fp32(
    operands: str, expected: list[str], casts: int
) -> None:
    assert cast(SUMS.replace("OPERANDS", operands)) == (expected, casts)


def test_arithmetic_between_inputs_and_outputs_alone_is_cast() -> None:
    text = """
    g (float[1,4] x) => (float[1,4] y)
    <int64[2] shape = {1, 4}>
    { r = Reshape (x, shape)
      y = Mul (r, r) }
    """
    assert cast(text) == ([], 2)
