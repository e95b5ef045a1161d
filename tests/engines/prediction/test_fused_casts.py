"""Predicted engines of layers with Casts around their pairs."""

from __future__ import annotations

import pytest

from qdq.engines.engine import Engine
from qdq.engines.prediction.predictor import predict_engine
from qdq.target import Target
from tests.support.cast_models import CastModel, cast_conv


def types(engine: Engine, label: str) -> list[str]:
    """Return the types of the inputs and weights of the layer that runs a node."""
    (layer,) = [layer for layer in engine.layers if label in layer.nodes]
    return [tensor.dtype for tensor in (*layer.inputs, *layer.constants)]


@pytest.mark.parametrize(
    ("activation", "weight", "float_type"),
    [
        ("q", "Hq", "H"),
        ("FQH", "QH", "H"),
        ("FIQDH", "QIH", "H"),
        ("FQHFH", "QHFH", "H"),
        ("FQPH", "QTHT", "H"),
        ("FQB", "QB", "B"),
    ],
)
def test_a_layer_between_casts_multiplies_in_int8(
    activation: str, weight: str, float_type: str
) -> None:
    engine = predict_engine(cast_conv(activation, weight, float_type), Target("trt", 86))
    assert types(engine, "conv") == ["Int8", "Int8"]
    assert not [layer for layer in engine.layers if layer.fusion_rule == "stand-alone-dequantize"]


@pytest.mark.parametrize(("activation", "weight"), [("FQBH", "QH"), ("FQH", "QBH")])
def test_a_layer_behind_casts_that_round_first_multiplies_in_float(
    activation: str, weight: str
) -> None:
    engine = predict_engine(cast_conv(activation, weight), Target("trt", 86))
    assert types(engine, "conv") == ["Half", "Half"]


def test_a_layer_writes_int8_for_a_pair_behind_a_cast() -> None:
    model = CastModel()
    first = model.conv(model.chain("x", "FQH"), "first")
    result = model.conv(model.chain(first, "FQH"), "second")
    engine = predict_engine(model.build(result), Target("trt", 86))
    (layer,) = [layer for layer in engine.layers if "first" in layer.nodes]
    assert layer.outputs[0].dtype == "Int8"
