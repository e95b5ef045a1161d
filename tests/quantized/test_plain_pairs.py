"""A model that is said to hold plain pairs alone is one whose conversion changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import qdq
from qdq.errors import ModelError
from qdq.graph.qdq_graph import QdqGraph
from qdq.quantized.converter import convert_graphs, convert_to_qdq
from qdq.quantized.plain_pairs import holds_plain_pairs_alone
from tests.support.graphs import node
from tests.support.mutations import mutated
from tests.support.pair_models import branches, small

Model = onnx.ModelProto


def quantized() -> Model:
    """Return two convolutions with pairs on x, on p and on a weight."""
    return small(x="x_dq", p="p_dq", weight=("ws", "wz"))


def is_plain(model: Model) -> bool:
    """Whether nothing of a model has to be converted."""
    return holds_plain_pairs_alone(QdqGraph(qdq.load(model).model.graph))


def find(model: Model, name: str) -> onnx.NodeProto:
    """Return the node that computes a tensor."""
    return next(found for found in model.graph.node if name in found.output)


def with_own_scale(model: Model, values: object) -> Model:
    """Give the DQ of x a scale of its own."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32), "own"))
    find(model, "x_dq").input[1] = "own"
    return model


def with_equal_scale(model: Model) -> None:
    with_own_scale(model, 0.5)


def with_other_scale(model: Model) -> None:
    with_own_scale(model, 0.75)


def with_nan_scales(model: Model) -> None:
    with_own_scale(model, np.nan)
    find(model, "x_q").input[1] = "own2"
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "own2"))


def with_range_from_zero(model: Model) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint8), "zero"))
    for name in ("p_q", "p_dq"):
        find(model, name).input[2] = "zero"


def without_zero_point(model: Model) -> None:
    del find(model, "p_q").input[2]


def with_other_reader(model: Model) -> None:
    model.graph.node.append(node("Cast", ["p_q"], "read", to=onnx.TensorProto.FLOAT))


def with_integer_output(model: Model) -> None:
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("p_q", onnx.TensorProto.INT8, None)
    )


def with_identity_between(model: Model) -> None:
    position = [found.output[0] for found in model.graph.node].index("p_dq")
    model.graph.node.insert(position, node("Identity", ["p_q"], "same"))
    find(model, "p_dq").input[0] = "same"


def with_computed_scale(model: Model) -> None:
    model.graph.node.insert(0, node("Neg", ["t"], "scale"))
    for name in ("x_q", "x_dq"):
        find(model, name).input[1] = "scale"


def of_onnx_runtime(model: Model) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for name in ("x_q", "x_dq"):
        find(model, name).domain = "com.microsoft"


def with_scale_as_constant(model: Model) -> None:
    values = numpy_helper.from_array(np.array(0.5, np.float32))
    model.graph.node.insert(0, node("Constant", [], "constant", value=values))
    for name in ("x_q", "x_dq"):
        find(model, name).input[1] = "constant"


@pytest.mark.parametrize("change", [with_equal_scale, with_scale_as_constant])
def test_pairs_of_equal_stored_scales_are_plain(change: Callable[[Model], None]) -> None:
    model = quantized()
    assert is_plain(model)
    change(model)
    assert is_plain(model)
    assert convert_graphs(qdq.load(model))[1] == ()


@pytest.mark.parametrize(
    "change",
    [
        with_other_scale,
        with_nan_scales,
        with_range_from_zero,
        without_zero_point,
        with_other_reader,
        with_integer_output,
        with_identity_between,
        with_computed_scale,
        of_onnx_runtime,
    ],
)
def test_other_pairs_are_left_to_the_conversion(change: Callable[[Model], None]) -> None:
    model = quantized()
    change(model)
    assert not is_plain(model)


def test_a_body_is_looked_at_too() -> None:
    model = branches(quantized=True)
    assert is_plain(model)
    choice = model.graph.node[1]
    (body,) = (entry.g for entry in choice.attribute if entry.name == "then_branch")
    del body.node[0].input[2]
    assert not is_plain(model)
    assert convert_to_qdq(qdq.load(model))[1] != ()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans())
def test_nothing_is_converted_in_what_counts_as_plain(seed: int, count: int, in_body: bool) -> None:
    model, _ = mutated(branches(quantized=True) if in_body else quantized(), seed, count)
    try:
        source = qdq.load(model)
        is_said_to_be_plain = holds_plain_pairs_alone(QdqGraph(source.model.graph, source.location))
        converted, nodes = convert_graphs(source)
    except ModelError:  # of a damaged model, from the conversion too
        return
    if is_said_to_be_plain:
        assert converted is source
        assert nodes == ()
