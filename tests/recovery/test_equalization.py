"""Equalization: the float function stays the same to the last bit, and stripping undoes it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qdq.errors import DataError, ModelError
from qdq.graph.equalized_weights import (
    Equalization,
    read_equalizations,
    undo_equalization,
)
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import canonical_bytes
from qdq.planning.planner import plan
from qdq.quantized.stripper import strip
from qdq.recovery.equalization import equalize, find_equalizations
from tests.support.equalized_models import (
    ChainBuilder,
    convolution_chains,
    equalize_model,
    make_samples,
    matrix_chains,
    quantize_equalized,
)
from tests.support.graphs import Array, build, draw_graphs, node, noise, random_feed, run

_MODELS = st.one_of(convolution_chains(), matrix_chains())
_HALF_MODELS = st.one_of(convolution_chains(np.float16), matrix_chains(np.float16))


def _weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _assert_same_function(model: onnx.ModelProto, equalized: onnx.ModelProto) -> None:
    feed = random_feed(model, 7)
    for expected, actual in zip(run(model, feed), run(equalized, feed), strict=True):
        assert expected.tobytes() == actual.tobytes()


def _assert_recorded(model: onnx.ModelProto, equalized: onnx.ModelProto) -> None:
    """The weights are those of the model times the factors in the metadata, and no others differ."""
    expected = _weights(model)
    for equalization in read_equalizations(equalized):
        for weight in equalization.weights:
            values = expected[weight.tensor]
            positions = np.indices(values.shape)
            group = positions[0] * weight.groups // len(values) if weight.groups > 1 else 0
            channel = group * values.shape[weight.axis] + positions[weight.axis]
            factors = np.exp2(np.array(weight.exponents)[channel])
            expected[weight.tensor] = (values * factors).astype(values.dtype)
    actual = _weights(equalized)
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values)


@draw_graphs(15)
@given(_MODELS)
def test_the_float_function_stays_and_stripping_restores_the_model(model: onnx.ModelProto) -> None:
    samples = make_samples(model)
    source, _ = equalize_model(model, samples)

    _assert_same_function(load(model).model, source.model)
    _assert_recorded(load(model).model, source.model)
    quantized = quantize_equalized(source, samples)
    assert canonical_bytes(strip(quantized)) == canonical_bytes(load(model).model)


@draw_graphs(8)
@given(_HALF_MODELS)
def test_float16_stays_exact_where_no_value_is_subnormal(model: onnx.ModelProto) -> None:
    samples = make_samples(model)
    source, _ = equalize_model(model, samples)

    feed = {name: np.round(values * 2) for name, values in random_feed(model, 7).items()}
    for expected, actual in zip(run(model, feed), run(source.model, feed), strict=True):
        assert np.isfinite(expected).all()
        assert expected.tobytes() == actual.tobytes()
    restored = _weights(strip(quantize_equalized(source, samples)))
    assert restored.keys() == _weights(model).keys()
    for name, values in _weights(model).items():
        assert values.tobytes() == restored[name].tobytes()


@draw_graphs(10)
@given(_MODELS)
def test_weights_alone_give_exact_factors_too(model: onnx.ModelProto) -> None:
    source, _ = equalize_model(model, None)

    _assert_same_function(load(model).model, source.model)


def _two_convolutions(between: str = "Relu", **attributes: object) -> onnx.ModelProto:
    """Return two convolutions whose tensor has channels of very different ranges."""
    chain = ChainBuilder(3)
    chain.add_layer("plain")
    chain.add(between, **attributes)
    chain.add_layer("plain")
    return chain.build()


@pytest.mark.parametrize("between", ["Relu", "LeakyRelu", "Identity"])
def test_channels_of_different_ranges_are_equalized(between: str) -> None:
    model = _two_convolutions(between)
    samples = make_samples(model)
    source, equalizations = equalize_model(model, samples)

    assert [item.gain_db > 1.0 for item in equalizations] == [True]
    (equalization,) = equalizations
    assert len({weight.tensor for weight in equalization.weights}) == 3
    assert len(set(equalization.exponents)) > 1
    assert source.digest != load(model).digest


@pytest.mark.parametrize("between", ["Sigmoid", "HardSwish", "Tanh", "Softplus", "Elu"])
def test_other_activations_are_not_passed(between: str) -> None:
    model = _two_convolutions(between)

    assert equalize_model(model, make_samples(model))[1] == ()


@pytest.mark.parametrize(("limits", "count"), [((0.0, 6.0), 0), ((0.0, None), 1)])
def test_a_clip_is_passed_only_as_a_relu(limits: tuple[float, float | None], count: int) -> None:
    chain = ChainBuilder(3)
    chain.add_layer("plain")
    names = []
    for name, limit in zip(("low", "high"), limits, strict=True):
        if limit is not None:
            chain.weights[name] = np.array(limit, np.float32)
            names.append(name)
    chain.add("Clip", *names)
    chain.add_layer("plain")
    model = chain.build()

    assert len(equalize_model(model, make_samples(model))[1]) == count


def test_the_output_of_the_graph_is_not_scaled() -> None:
    chain = ChainBuilder(3)
    chain.add_layer("plain")
    chain.add_layer("plain")
    model = chain.build(outputs=2)

    assert equalize_model(model, make_samples(model))[1] == ()


def test_a_second_reader_that_is_no_layer_keeps_the_channels_as_they_are() -> None:
    model = build(
        [
            node("Conv", ["x", "w1"], "a"),
            node("Conv", ["a", "w2"], "b"),
            node("Sigmoid", ["a"], "c"),
            node("Conv", ["c", "w3"], "d"),
            node("Add", ["b", "d"], "y"),
        ],
        {"x": [1, 4, 5, 5]},
        ["y"],
        {
            "w1": noise(4, 4, 1, 1) * np.exp2(np.arange(4)).reshape(4, 1, 1, 1),
            "w2": noise(4, 4, 1, 1),
            "w3": noise(4, 4, 1, 1),
        },
    )

    assert equalize_model(model, make_samples(model))[1] == ()


def test_a_weight_that_two_nodes_read_is_not_scaled() -> None:
    chain = ChainBuilder(3)
    weight = chain.weight(8, 8, 1, 1, spread=5)
    chain.add("Conv", weight)
    chain.add("Conv", weight)
    model = chain.build()

    assert equalize_model(model, make_samples(model))[1] == ()


def test_all_readers_of_a_normalization_get_the_inverse_factors() -> None:
    chain = ChainBuilder(1)
    normalized = chain.add("LayerNormalization", chain.weight(16, spread=6), chain.weight(16))
    for _ in range(3):
        chain.tensor = normalized
        chain.add("MatMul", chain.weight(16, 12))
    names = [item.output[0] for item in chain.nodes[-3:]]
    model = build(chain.nodes, {"x": [1, 5, 16]}, names, chain.weights)

    source, (equalization,) = equalize_model(model, make_samples(model))

    signs = {weight.tensor: weight.exponents for weight in equalization.weights}
    inverse = tuple(-exponent for exponent in equalization.exponents)
    assert signs == {
        "w0": equalization.exponents, "w1": equalization.exponents,
        "w2": inverse, "w3": inverse, "w4": inverse,
    }  # fmt: skip
    _assert_same_function(model, source.model)


def test_flattened_channels_keep_their_factors() -> None:
    chain = ChainBuilder(5)
    chain.add_layer("plain")
    chain.add("Relu")
    chain.add("MaxPool", kernel_shape=[4, 4], strides=[4, 4])
    chain.add("Flatten")
    chain.add("Gemm", chain.weight(32, 10))
    model = chain.build()

    source, (equalization,) = equalize_model(model, make_samples(model))

    assert len(equalization.exponents) == 32
    assert equalization.exponents[::4] == equalization.exponents[3::4]
    _assert_same_function(model, source.model)


def test_channels_are_followed_through_a_concatenation() -> None:
    chain = ChainBuilder(5)
    chain.add_layer("plain")
    first = chain.tensor
    chain.tensor = "x"
    chain.add_layer("plain")
    chain.add("Concat", first, axis=1)
    chain.add("Conv", chain.weight(4, 16, 1, 1))
    model = chain.build()

    source, (equalization,) = equalize_model(model, make_samples(model))

    assert len(equalization.exponents) == 16
    assert len({weight.tensor for weight in equalization.weights}) == 5
    _assert_same_function(model, source.model)


def test_values_that_would_become_subnormal_keep_their_channel() -> None:
    model = _two_convolutions()
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w0"]
    values = numpy_helper.to_array(weight).copy()
    values[:, 0, 0, 0] = np.finfo(np.float32).tiny
    weight.CopyFrom(numpy_helper.from_array(values, "w0"))

    source, equalizations = equalize_model(model, make_samples(model))

    for equalization in equalizations:
        assert min(equalization.exponents) >= 0
    restored = onnx.ModelProto()
    restored.CopyFrom(source.model)
    undo_equalization(restored)
    assert canonical_bytes(restored) == canonical_bytes(load(model).model)


def test_weights_of_constant_nodes_and_float_data_are_scaled_where_they_are() -> None:
    model = _two_convolutions()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    constant = node("Constant", [], "w0", value=tensors["w0"])
    values = numpy_helper.to_array(tensors["w2"]).ravel().tolist()
    plain = onnx.helper.make_tensor("w2", onnx.TensorProto.FLOAT, tensors["w2"].dims, values)
    kept = [tensors["w1"], plain, tensors["w3"]]
    nodes = [constant, *model.graph.node]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    samples = make_samples(model)

    source, (equalization,) = equalize_model(model, samples)

    assert {"w0", "w2"} <= {weight.tensor for weight in equalization.weights}
    _assert_same_function(model, source.model)
    restored = strip(quantize_equalized(source, samples))
    assert canonical_bytes(restored) == canonical_bytes(load(model).model)


def test_a_model_is_equalized_once() -> None:
    model = _two_convolutions()
    source, equalizations = equalize_model(model, make_samples(model))

    with pytest.raises(ModelError, match=r"is equalized already\. Strip it first"):
        equalize(source, equalizations)


def test_without_equalizations_the_source_stays() -> None:
    source = load(_two_convolutions())

    assert equalize(source, ()) is source


def test_equalizations_of_another_model_are_refused() -> None:
    _, equalizations = equalize_model(_two_convolutions(), make_samples(_two_convolutions()))
    other = load(build([node("Relu", ["x"], "y")], {"x": [1]}, ["y"]))

    with pytest.raises(ModelError, match="the weight 'w0' is not stored in the model"):
        equalize(other, equalizations)


def test_no_samples_are_refused() -> None:
    source = load(_two_convolutions())

    with pytest.raises(DataError, match=r"there are no samples\. Pass some"):
        find_equalizations(GraphIndex(source), plan(source), [])


def test_samples_with_nan_are_refused() -> None:
    source = load(_two_convolutions())
    samples = [{"x": np.full((1, 8, 8, 8), np.nan, np.float32)}]

    with pytest.raises(DataError, match="values that are not finite"):
        find_equalizations(GraphIndex(source), plan(source), samples)


def test_a_plan_that_quantizes_none_of_the_readers_needs_no_equalization() -> None:
    source = load(_two_convolutions())
    float_plan = plan(source, leave_float="*")
    equalizations: tuple[Equalization, ...] = find_equalizations(
        GraphIndex(source), float_plan, make_samples(source.model)
    )

    assert equalizations == ()
