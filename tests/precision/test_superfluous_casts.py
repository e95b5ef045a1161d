"""Casts of integers that a cast model loses because they change no value."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper

import qdq
from qdq.graph.bodies import all_nodes
from qdq.graph.source import canonical_bytes
from tests.support.graphs import run

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
#: The Casts of the float input and output.
ENDS = ["x_float16", "y"]


def parse(text: str) -> ModelProto:
    return onnx.parser.parse_model(HEADER + text)


def cast_results(model: ModelProto) -> list[str]:
    return [node.output[0] for _, node in all_nodes(model.graph) if node.op_type == "Cast"]


def run_both(model: ModelProto, feed: dict[str, np.ndarray]) -> None:
    """Cast a model, and compare what both compute."""
    before = canonical_bytes(model)
    result = qdq.cast(model)
    onnx.checker.check_model(result.model, full_check=True)
    for expected, actual in zip(run(model, feed), run(result.model, feed), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert canonical_bytes(model) == before
    assert canonical_bytes(qdq.cast(result.model).model) == canonical_bytes(result.model)


PADDED = """
g (float[2,4] x) => (float[N,M] y)
<int64[4] pads = {0, 1, 0, 1}>
{ p = Identity (pads)
  same = Cast <to = 7> (p)
  y = Pad (x, same) }
"""


def test_a_cast_to_its_own_type_goes() -> None:
    assert cast_results(qdq.cast(parse(PADDED)).model) == []
    run_both(parse(PADDED), {"x": np.arange(8, dtype=np.float32).reshape(2, 4)})


RESHAPED = """
g (float[B,6] x) => (float[N,M] y)
<int64[1] start = {0}, int64[1] end = {1}, int32[1] two = {2}>
{ three = Constant <value = int32[1] {3}> ()
  shape = Shape (x)
  narrow = Cast <to = 6> (shape)
  batch = Slice (narrow, start, end)
  wide = Cast <to = 7> (batch)
  again = Cast <to = 7> (batch)
  columns = Cast <to = 7> (three)
  rows = Cast <to = 7> (two)
  whole = Concat <axis = 0> (wide, rows, columns)
  cube = Reshape (x, whole)
  other = Concat <axis = 0> (again, columns, rows)
  turned = Reshape (cube, other)
  flat = Flatten (turned)
  y = Relu (flat) }
"""


def test_constants_are_folded_and_shapes_stay_int64() -> None:
    model = qdq.cast(parse(RESHAPED)).model

    assert cast_results(model) == ENDS
    names = {tensor.name for tensor in model.graph.initializer}
    constants = [node.output[0] for node in model.graph.node if node.op_type == "Constant"]
    assert names == {"start", "end"}
    assert constants == ["columns", "rows"]
    run_both(parse(RESHAPED), {"x": np.arange(12, dtype=np.float32).reshape(2, 6)})


@pytest.mark.parametrize(
    ("reader", "declared"),
    [
        ("y2 = Identity (batch)", "int32[K] y2"),
        ("y2 = Add (batch, one)", "int32[K] y2"),
        ("batch2 = Identity (batch) y2 = Mul (batch2, batch2)", "int32[K] y2"),
    ],
)
def test_a_shape_that_others_read_stays_narrow(reader: str, declared: str) -> None:
    text = f"""
    g (float[B,6] x) => (float[N,M] y, {declared})
    <int64[1] start = {{0}}, int64[1] end = {{1}}, int32[1] one = {{1}}, int64[1] rest = {{-1}}>
    {{ shape = Shape (x)
      narrow = Cast <to = 6> (shape)
      batch = Slice (narrow, start, end)
      wide = Cast <to = 7> (batch)
      {reader}
      whole = Concat <axis = 0> (wide, rest)
      y = Reshape (x, whole) }}
    """
    assert "narrow" in cast_results(qdq.cast(parse(text)).model)
    run_both(parse(text), {"x": np.arange(12, dtype=np.float32).reshape(2, 6)})


def test_values_that_a_type_does_not_hold_and_outputs_keep_their_cast() -> None:
    text = """
    g (float[2] x) => (float[2] y, uint8[1] wrapped, int64[1] z, float[2] scaled)
    <int64[1] big = {300}, int32[1] small = {3}, int64[2] inexact = {3, 2049}>
    { y = Relu (x)
      wrapped = Cast <to = 2> (big)
      z = Cast <to = 7> (small)
      factor = Cast <to = 1> (inexact)
      scaled = Mul (x, factor) }
    """
    result = qdq.cast(parse(text))

    constants = {node.output[0] for node in result.model.graph.node if node.op_type == "Constant"}
    assert constants == {"z"}
    assert {"wrapped", "factor"} <= set(cast_results(result.model))


def test_integers_that_16_bits_hold_become_constants() -> None:
    text = """
    g (float[2] x) => (float[2] y)
    <int64[2] factors = {3, 2048}>
    { factor = Cast <to = 1> (factors)
      y = Mul (x, factor) }
    """
    model = qdq.cast(parse(text)).model

    assert cast_results(model) == ENDS
    constant = next(node for node in model.graph.node if node.op_type == "Constant")
    assert constant.attribute[0].t.data_type == TensorProto.FLOAT16
    assert numpy_helper.to_array(constant.attribute[0].t).tolist() == [3, 2048]


def test_bodies_lose_theirs_too() -> None:
    text = """
    g (float[2] x, bool c, int64[1] n) => (float[M] y)
    { outer = Cast <to = 7> (n)
      y = If (c) <
        then_branch = a () => (float[M] t) { same = Cast <to = 7> (outer)  t = Expand (x, same) },
        else_branch = b () => (float[M] e) { two = Constant <value = int32[1] {2}> ()
          wide = Cast <to = 7> (two)  e = Tile (x, wide) }> }
    """
    assert cast_results(qdq.cast(parse(text)).model) == ENDS
    feed = {"x": np.array([1, 2], np.float32), "n": np.array([2], np.int64)}
    for condition in (True, False):
        run_both(parse(text), {**feed, "c": np.array(condition)})


TARGETS = st.sampled_from(
    [TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL]
)


@settings(max_examples=40, deadline=None)
@given(
    outside=st.lists(TARGETS, max_size=3),
    inside=st.lists(TARGETS, min_size=1, max_size=3),
    values=st.lists(st.integers(-300, 300), min_size=2, max_size=2),
    is_stored=st.booleans(),
)
def test_chains_of_casts_keep_their_values(
    outside: list[int], inside: list[int], values: list[int], is_stored: bool
) -> None:
    """Casts of an input or a constant, one after the other, in the main graph and in a body."""
    lines, tensor = chain("n", "a", outside)
    inner_lines, result = chain(tensor, "b", inside)
    inputs = "float[2] x, bool c" if is_stored else "float[2] x, bool c, int64[2] n"
    stored = f"<int64[2] n = {{{values[0]}, {values[1]}}}>" if is_stored else ""
    text = f"""
    g ({inputs}) => (float[2] y, int64[2] z)
    {stored}
    {{ {lines}
      y = Relu (x)
      z = If (c) <
        then_branch = t () => (int64[2] d) {{ {inner_lines}
          last = Cast <to = 7> ({result})  again = Cast <to = 7> ({result})
          d = Add (last, again) }},
        else_branch = e () => (int64[2] f) {{ f = Cast <to = 7> ({tensor}) }}> }}
    """
    feed: dict[str, np.ndarray] = {"x": np.array([1, 2], np.float32)}
    if not is_stored:
        feed["n"] = np.array(values, np.int64)
    for condition in (True, False):
        run_both(parse(text), {**feed, "c": np.array(condition)})


def chain(tensor: str, letter: str, targets: list[int]) -> tuple[str, str]:
    """Return the Casts to some types, one after the other, and the last result."""
    lines: list[str] = []
    for position, target in enumerate(targets):
        lines.append(f"{letter}{position} = Cast <to = {target}> ({tensor})")
        tensor = f"{letter}{position}"
    return "\n".join(lines), tensor
