"""Pairs with Casts and aliases between them and their layer: those that TensorRT-RTX multiplies in INT8 behind count."""

from __future__ import annotations

import onnx
import pytest

from qdq.checking.checker import check
from tests.support.cast_models import CastModel, cast_conv


def findings(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return what is wrong with the pairs, without notes about Casts that cancel."""
    return [
        (finding.code, str(finding.where))
        for finding in check(model, weights=False)
        if finding.code != "cancelling-casts"
    ]


@pytest.mark.parametrize(
    ("activation", "weight", "float_type"),
    [
        ("FQH", "QH", "H"),
        ("FIQDH", "QIH", "H"),
        ("FSQHS", "QHS", "H"),
        ("FQHH", "QFH", "H"),
        ("FQHFH", "QHFH", "H"),
        ("FTTQH", "QH", "H"),
        ("FQTHT", "QTHT", "H"),
        ("FQPH", "QH", "H"),
        ("HFHFQH", "HFQH", "H"),
        ("qFH", "HqFH", "H"),
        ("qBH", "HqBH", "H"),
        ("FQB", "QB", "B"),
        ("QI", "QD", "F"),
    ],
)
def test_a_pair_counts_past_casts_and_aliases(
    activation: str, weight: str, float_type: str
) -> None:
    assert findings(cast_conv(activation, weight, float_type)) == []


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_it_counts_in_every_opset(opset: int) -> None:
    assert findings(cast_conv(opset=opset)) == []


@pytest.mark.parametrize(
    ("activation", "weight", "float_type"),
    [("FQBH", "QH", "H"), ("QHF", "Q", "F"), ("QBF", "Q", "F"), ("FQHB", "QB", "B")],
)
def test_a_layer_behind_casts_that_round_first_runs_in_float(
    activation: str, weight: str, float_type: str
) -> None:
    model = cast_conv(activation, weight, float_type)
    (finding,) = check(model, weights=False)
    assert finding.code == "half-quantized"
    assert "a Cast that rounds" in finding.problem


def test_casts_from_half_precision_are_found_on_both_operands() -> None:
    model = CastModel("F")
    data = model.op("Abs", ["x"], "abs")
    half = CastModel("H")
    half.nodes, half.weights = model.nodes, model.weights
    read = half.chain(data, "HqF")
    stored = half.conv(read, "conv", "HqF")
    model.nodes, model.weights = half.nodes, half.weights
    assert findings(model.build(stored)) == [("missing-pair", f"{read} -> conv[0]")]


def test_scales_along_another_axis_are_found_at_the_pair_behind_a_cast() -> None:
    model = cast_conv()
    for node in model.graph.node:
        if node.name == "" and node.attribute:
            node.attribute[0].i = 1
    assert findings(model) == [("wrong-axis", "conv.w -> conv.wQH[0]")]


def test_one_scale_for_a_weight_is_found_behind_a_cast() -> None:
    model = CastModel()
    data = model.chain(model.op("Abs", ["x"], "abs"), "FQH")
    weight = model.conv(data, "conv", "")
    read = model.chain("conv.w", "QH")
    conv = model.nodes.pop(-4)
    conv.input[1] = read
    model.nodes.append(conv)
    assert findings(model.build(weight)) == [("weight-per-tensor", "conv.w -> conv.wQH[0]")]


def test_a_pair_between_casts_after_a_layer_is_on_its_output() -> None:
    model = CastModel()
    result = model.conv(model.chain("x", "FQH"), "conv")
    assert findings(model.build(model.chain(result, "FQH"))) == [
        ("pair-on-output", "conv.yF -> conv.yFQH[0]")
    ]


def test_a_pair_between_casts_before_an_activation_is_in_its_fusion() -> None:
    model = CastModel()
    result = model.chain(model.conv(model.chain("x", "FQH"), "first"), "FQHR")
    second = model.conv(model.chain(result, "FQH"), "second")
    assert findings(model.build(second)) == [("pair-in-fusion", "first.yF -> first.yFQH[0]")]


def test_equal_pairs_before_a_concat_count_behind_casts_and_others_do_not() -> None:
    for scale, codes in ((0.03, []), (0.06, ["unequal-scales"])):
        model = CastModel()
        parts = [
            model.chain(model.op("Abs", ["x"], "abs"), "FQH"),
            model.chain(model.op("Exp", ["x"], "exp"), "FQH", scale=scale),
        ]
        joined = model.op("Concat", parts, "joined", axis=1)
        result = model.conv(joined, "conv", channels=16)
        assert [code for code, _ in findings(model.build(result))] == codes
