"""Quantized values: those of ONNX Runtime's QuantizeLinear, and their bytes in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from qdq.quantized.integer_values import (
    make_quantized_tensor,
    pack_nibbles,
    quantize_values,
    unpack_nibbles,
)
from tests.support.graphs import Array

INT8, FP8, INT4 = TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4

#: The version of ONNX Runtime.
RUNTIME = tuple(map(int, ort.__version__.split(".")[:2]))

#: Dividing by a scale of a few bits makes ties, which must round to even.
SCALES = st.sampled_from([2.0**-9, float(np.float32(0.01)), 0.25, 1.0, 1.5, 3.0])


def runtime_tensor(values: Array, scale: Array, code: int, **attributes: int) -> Array:
    """Return the values that ONNX Runtime's Q and DQ make of a tensor."""
    zero_point = onnx.TensorProto(
        name="z", data_type=code, dims=scale.shape, raw_data=bytes(max(scale.size, 1))
    )
    if code == INT4:
        zero_point.raw_data = bytes((scale.size + 1) // 2)
    elem_type = helper.np_dtype_to_tensor_dtype(values.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        ],
        "pair",
        [helper.make_tensor_value_info("x", elem_type, values.shape)],
        [helper.make_tensor_value_info("y", elem_type, values.shape)],
        [numpy_helper.from_array(scale, "s"), zero_point],
    )
    return run_alone(graph, {"x": values})


def stored_tensor(values: Array, scale: Array, code: int, **attributes: int) -> Array:
    """Return the values that ONNX Runtime's DQ makes of the stored tensor."""
    axis, block_size = attributes.get("axis", 0), attributes.get("block_size", 0)
    integers = quantize_values(values, scale, code, axis, block_size)
    elem_type = helper.np_dtype_to_tensor_dtype(values.dtype)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"], **attributes)],
        "stored",
        [],
        [helper.make_tensor_value_info("y", elem_type, values.shape)],
        [numpy_helper.from_array(scale, "s"), make_quantized_tensor(integers, code, "w")],
    )
    return run_alone(graph, {})


def run_alone(graph: onnx.GraphProto, feed: dict[str, Array]) -> Array:
    """Return the only output of a graph in ONNX Runtime, without any rewriting."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, feed)
    return np.asarray(result)


def assert_same_bits(actual: Array, expected: Array) -> None:
    """Fail unless two float arrays are equal, the sign of zeros included."""
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


@pytest.mark.skipif(
    RUNTIME < (1, 31), reason="ONNX Runtime 1.23 rounds FP16 towards 0 (-1.9 to -1); 1.31 does not"
)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    values=arrays.arrays(np.float32, (4, 6), elements=st.floats(-1000, 1000, width=32)),
    scales=st.lists(SCALES, min_size=4, max_size=4),
    code=st.sampled_from([INT8, FP8]),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_stored_channels_are_what_onnx_runtime_quantizes(
    values: Array, scales: list[float], code: int, dtype: Any
) -> None:
    weight, scale = values.astype(dtype), np.array(scales, dtype)
    expected = runtime_tensor(weight, scale, code, axis=0)
    assert_same_bits(stored_tensor(weight, scale, code, axis=0), expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    values=arrays.arrays(np.float32, 32, elements=st.floats(-1e6, 1e6, width=32)),
    scale=SCALES,
    code=st.sampled_from([INT8, FP8]),
)
def test_one_scale_is_for_the_whole_tensor(values: Array, scale: float, code: int) -> None:
    stored_scale = np.array(scale, np.float32)
    expected = runtime_tensor(values, stored_scale, code)
    assert_same_bits(stored_tensor(values, stored_scale, code), expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    values=arrays.arrays(np.float32, (8, 6), elements=st.floats(-20, 20, width=32)),
    scales=arrays.arrays(np.float32, (2, 6), elements=SCALES),
    is_transposed=st.booleans(),
)
def test_blocks_of_int4_are_what_onnx_runtime_quantizes(
    values: Array, scales: Array, is_transposed: bool
) -> None:
    axis = 0
    if is_transposed:
        values, scales, axis = values.T.copy(), scales.T.copy(), 1
    expected = runtime_tensor(values, scales, INT4, axis=axis, block_size=4)
    assert_same_bits(stored_tensor(values, scales, INT4, axis=axis, block_size=4), expected)


@given(arrays.arrays(np.int8, st.integers(0, 9), elements=st.integers(-8, 7)))
def test_integers_of_four_bits_are_packed_as_onnx_reads_them(values: Array) -> None:
    content = pack_nibbles(values)
    assert len(content) == (values.size + 1) // 2
    np.testing.assert_array_equal(unpack_nibbles(content, values.shape), values)
    tensor = make_quantized_tensor(values, INT4, "w")
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


def test_ties_round_to_even_and_values_are_clipped_to_the_ends_of_the_type() -> None:
    values = np.array([0.5, 1.5, -0.5, -1.5, 300.0, -300.0], np.float32)
    scale = np.array(1.0, np.float32)
    assert quantize_values(values, scale, INT8).tolist() == [0, 2, 0, -2, 127, -128]
    assert quantize_values(values, scale, INT4).tolist() == [0, 2, 0, -2, 7, -8]


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        quantize_values(np.ones((2, 3), np.float32), np.ones(5, np.float32), INT8, 0)
