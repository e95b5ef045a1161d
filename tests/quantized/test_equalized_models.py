"""Commands on a quantized model whose weights are equalized."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qdq.calibration.range_sources import read_model_ranges
from qdq.checking.checker import check
from qdq.errors import ModelError
from qdq.graph.equalized_weights import read_equalizations
from qdq.graph.loader import load
from qdq.graph.metadata import EQUALIZATION_KEY
from qdq.graph.source import canonical_bytes
from qdq.pipeline.quantize_model import quantize
from qdq.quantized.pair_diff import diff
from qdq.quantized.stripper import strip
from tests.support.equalized_models import (
    ChainBuilder,
    equalize_model,
    make_samples,
    quantize_equalized,
)


def _float_model() -> onnx.ModelProto:
    chain = ChainBuilder(3)
    chain.add_layer("plain")
    chain.add("Relu")
    chain.add_layer("plain")
    chain.add("Sigmoid")
    chain.add_layer("plain")
    return chain.build()


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    model = _float_model()
    samples = make_samples(model)
    source, equalizations = equalize_model(model, samples)
    assert equalizations
    return quantize_equalized(source, samples)


def _write_entry(model: onnx.ModelProto, value: str) -> onnx.ModelProto:
    damaged = onnx.ModelProto()
    damaged.CopyFrom(model)
    for entry in damaged.metadata_props:
        if entry.key == EQUALIZATION_KEY:
            entry.value = value
    return damaged


def test_check_accepts_it(quantized: onnx.ModelProto) -> None:
    assert check(quantized) == ()


@pytest.mark.parametrize("mode", ["repair", "keep"])
def test_quantizing_it_again_keeps_pairs_and_weights(quantized: onnx.ModelProto, mode: str) -> None:
    again = quantize(quantized, None, existing=mode)

    assert read_equalizations(again.model) == read_equalizations(quantized)
    assert again.model.graph == quantized.graph
    assert canonical_bytes(strip(again.model)) == canonical_bytes(load(_float_model()).model)


def test_replacing_its_pairs_undoes_the_equalization(quantized: onnx.ModelProto) -> None:
    model = _float_model()
    again = quantize(quantized, make_samples(model), existing="replace")

    assert read_equalizations(again.model) == ()
    assert again.model.graph == quantize(model, make_samples(model)).model.graph


def test_diff_compares_the_weights_before_equalization(quantized: onnx.ModelProto) -> None:
    assert diff(_float_model(), quantized).weights == ()


def test_ranges_of_equalized_tensors_are_left_out(
    quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    path = tmp_path / "quantized.onnx"
    onnx.save(quantized, path)
    (equalization,) = read_equalizations(quantized)
    names = {item.tensor for item in read_model_ranges(path).by_tensor}

    assert names
    assert names.isdisjoint(equalization.tensors)
    assert equalization.tensor in equalization.tensors


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-5], "Input data was truncated"),
        (lambda text: "7", "Expected `array`, got `int`"),
        (lambda text: text.replace('"w0"', '"w9"'), "the weight 'w9' is not stored in the model"),
        (lambda text: text.replace('"axis":0', '"axis":7'), "has no axis 7"),
        (lambda text: text.replace('"groups":1', '"groups":3'), "has no 3 groups"),
        (lambda text: text.replace('"exponents":[', '"exponents":[1,'), "has 8 channels, not 9"),
        (lambda text: text.replace('"exponents":[', '"exponents":[9'), "has exponents above 12"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(
    quantized: onnx.ModelProto, change: object, problem: str
) -> None:
    (entry,) = [item.value for item in quantized.metadata_props if item.key == EQUALIZATION_KEY]
    assert callable(change)

    with pytest.raises(ModelError) as error:
        strip(_write_entry(quantized, change(entry)))

    message = str(error.value)
    assert "the metadata entry 'qdq.equalization' is invalid" in message
    assert problem in message
    assert "\n" not in message
    assert message.endswith("Quantize the float model again.")
