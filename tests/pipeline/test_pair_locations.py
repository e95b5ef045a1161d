"""Repair of models with Casts and aliases around their pairs: what was learned stays exactly, what cannot run is moved."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.pipeline.fixer import fix
from tests.support.body_models import graph
from tests.support.cast_models import SHAPE, CastModel, cast_conv
from tests.support.graphs import noise, run, value


def repair(model: onnx.ModelProto, existing: str = "repair") -> onnx.ModelProto:
    """Return a model repaired without data, which changes nothing the second time."""
    result = qdq.quantize(model, None, existing=existing)
    assert qdq.quantize(result.model, None, existing=existing).model == result.model
    return result.model


def pair_tensors(model: onnx.ModelProto) -> list[str]:
    return [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def list_findings(model: onnx.ModelProto) -> list[str]:
    """Return the codes of the findings, without the note about Casts that the models have."""
    codes = [finding.code for finding in qdq.check(model)]
    return [code for code in codes if code != "cancelling-casts"]


def output(model: onnx.ModelProto) -> np.ndarray:
    return run(model, {"x": noise(*SHAPE, dtype=np.float16) / 3})[0]


@pytest.mark.parametrize("existing", ["repair", "keep"])
@pytest.mark.parametrize(
    ("activation", "weight"),
    [("FQH", "QH"), ("FIQDH", "QIH"), ("FQTHT", "QTHT"), ("FQPH", "QH"), ("FQHFH", "QHFH")],
)
def test_pairs_before_casts_keep_their_place_and_every_value(
    activation: str, weight: str, existing: str
) -> None:
    model = cast_conv(activation, weight)
    repaired = repair(model, existing)
    assert pair_tensors(repaired) == pair_tensors(model)
    assert (output(repaired) == output(model)).all()
    assert list_findings(repaired) == []
    assert qdq.strip(repaired) == qdq.strip(model)


@pytest.mark.parametrize(("activation", "weight"), [("FQBH", "QH"), ("FQH", "QBH")])
def test_a_pair_behind_which_the_layer_runs_in_float_moves_with_its_scale(
    activation: str, weight: str
) -> None:
    model = cast_conv(activation, weight)
    repaired = repair(model)
    assert list_findings(repaired) == []
    assert set(pair_tensors(repaired)) & {f"abs.y{activation}", f"conv.w{weight}"}
    learned, kept = output(model).astype(np.float64), output(repaired)
    noise_power = ((kept - learned) ** 2).mean()
    assert 10 * np.log10((learned**2).mean() / noise_power) > 30


def test_a_pair_moves_to_the_layer_where_another_node_reads_its_values() -> None:
    model = CastModel()
    read = model.chain(model.op("Abs", ["x"], "abs"), "FQH")
    scores = model.op("Softmax", [read], "softmax")
    result = model.op("Mul", [model.conv(read, "conv"), scores], "product")
    repaired = repair(model.build(result))
    assert list_findings(repaired) == []
    assert sorted(pair_tensors(repaired)) == [read, "conv.w"]


def test_a_pair_with_two_casts_stays_on_both() -> None:
    model = CastModel()
    pair = model.chain(model.op("Abs", ["x"], "abs"), "FQ")
    first = model.conv(model.chain(pair, "H"), "first")
    second = model.conv(model.chain(pair, "DH"), "second")
    original = model.build(model.op("Mul", [first, second], "product"))
    repaired = repair(original)
    assert pair_tensors(repaired) == pair_tensors(original)
    assert (output(repaired) == output(original)).all()


def test_a_layer_without_a_weight_pair_gets_it_and_the_others_stay() -> None:
    model = CastModel()
    read = model.chain(model.op("Abs", ["x"], "abs"), "FQH")
    first = model.conv(read, "first")
    second = model.conv(read, "second", weight="H")
    repaired = repair(model.build(model.op("Mul", [first, second], "product")))
    assert sorted(pair_tensors(repaired)) == ["abs.yF", "first.w", "second.wH"]


def test_of_two_pairs_the_one_nearer_to_the_layer_stays() -> None:
    model = CastModel()
    outer = model.chain(model.op("Abs", ["x"], "abs"), "FQI", scale=0.03)
    inner = model.chain(outer, "QH", scale=0.06)
    repaired = repair(model.build(model.conv(inner, "conv")))
    scales = {tensor.name: tensor for tensor in repaired.graph.initializer}
    (scale,) = [s for name, s in scales.items() if name.startswith("abs.y") and "scale" in name]
    assert onnx.numpy_helper.to_array(scale) == np.float32(0.06)


def test_layers_in_bfloat16_keep_their_pairs() -> None:
    for activation, weight in (("FQB", "QB"), ("q", "Bq")):
        model = cast_conv(activation, weight, "B")
        repaired = repair(model)
        assert pair_tensors(repaired) == pair_tensors(model)
        assert list_findings(repaired) == []


def test_pairs_of_layers_in_bfloat16_have_scales_in_bfloat16() -> None:
    repaired = repair(cast_conv("FQHB", "QHB", "B"))
    types = {tensor.name: tensor.data_type for tensor in repaired.graph.initializer}
    assert types["abs.yFQHB_scale"] == types["conv.wQHB_scale"] == TensorProto.BFLOAT16
    assert list_findings(repaired) == []


def branching(inside: str, outside: str) -> onnx.ModelProto:
    """Return a convolution in a branch of an If; its pair is in the branch, outside or in between."""
    model = CastModel()
    read = model.chain(model.op("Abs", ["x"], "abs"), outside)
    body = CastModel()
    result = body.conv(body.chain(read, inside), "conv")
    outputs = [value(result, SHAPE, TensorProto.FLOAT16)]
    then = graph(body.nodes, outputs, initializer=body.weights)
    negative = helper.make_node("Neg", ["x"], ["n"], name="negative")
    otherwise = graph([negative], [value("n", SHAPE, TensorProto.FLOAT16)])
    chosen = model.op("If", ["c"], "if", then_branch=then, else_branch=otherwise)
    built = model.build(chosen)
    built.graph.input.append(value("c", [], TensorProto.BOOL))
    return built


@pytest.mark.parametrize(("inside", "outside"), [("FQH", ""), ("", "FQH"), ("H", "FQ"), ("", "q")])
def test_the_range_of_a_pair_outside_of_a_body_is_that_of_the_edge_in_it(
    inside: str, outside: str
) -> None:
    for result in (repair(branching(inside, outside)), fix(branching(inside, outside)).model):
        (chooser,) = [node for node in result.graph.node if node.op_type == "If"]
        branches = {attribute.name: attribute.g for attribute in chooser.attribute}
        ops = [node.op_type for node in branches["then_branch"].node]
        assert ops.count("QuantizeLinear") == 2
        assert list_findings(result) == []


def test_the_parts_of_a_concat_give_the_range_of_its_result() -> None:
    model = CastModel()
    parts = [
        model.chain(model.op("Abs", ["x"], "abs"), "FQH", scale=0.03),
        model.chain(model.op("Exp", ["x"], "exp"), "FQH", scale=0.06),
    ]
    joined = model.op("Concat", parts, "joined", axis=1)
    repaired = repair(model.build(model.conv(joined, "conv", channels=16)))
    scales = {tensor.name: tensor for tensor in repaired.graph.initializer}
    scale = onnx.numpy_helper.to_array(scales["joined.y_scale"])
    assert scale == pytest.approx(0.06, rel=1e-3)
    assert list_findings(repaired) == []


def test_ranges_of_the_float_model_hold_past_casts() -> None:
    model = qdq.strip(cast_conv())
    result = qdq.quantize(model, None, given=qdq.given_by_hand({"abs.yF": 127 * 0.25}))
    assert [pair.scales for pair in result.scales.by_pair if pair.tensor == "abs.yFQH"] == [(0.25,)]
