"""`check --fix` takes no pair of a layer that the rules want in INT8 without another in its place."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

import qdq
from qdq.pipeline.fixer import fix
from qdq.target import parse_target
from tests.support.cast_models import CastModel, cast_conv, count_halves
from tests.support.graphs import value


@pytest.mark.parametrize(
    ("activation", "weight", "float_type"),
    [
        ("FQH", "QH", "H"),
        ("FQBH", "QH", "H"),
        ("FQB", "QB", "B"),
        ("FQH", "H", "H"),
        ("FH", "QH", "H"),
        ("FQRH", "QH", "H"),
        ("FRH", "QH", "H"),
    ],
)
def test_no_pair_goes_without_another(activation: str, weight: str, float_type: str) -> None:
    model = cast_conv(activation, weight, float_type)
    fixed = fix(model)
    assert fixed is not None
    assert count_halves(fixed.model) >= count_halves(model)
    assert fix(fixed.model).model == fixed.model


def test_a_pair_before_a_loop_stays_that_has_no_other_for_the_layer_in_it() -> None:
    model = CastModel()
    read = model.chain(model.op("Abs", ["x"], "abs"), "FQH")
    body = CastModel()
    result = body.conv("state", "conv")
    types = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL)]
    state = value("state", [2, 8, 6, 6], TensorProto.FLOAT16)
    outputs = [
        value("more", [], TensorProto.BOOL),
        value(result, [2, 8, 6, 6], TensorProto.FLOAT16),
    ]
    body.nodes.append(helper.make_node("Identity", ["go"], ["more"], name="more"))
    graph = helper.make_graph(body.nodes, "body", [*types, state], outputs, body.weights)
    looped = model.build(model.op("Loop", ["n", "", read], "loop", body=graph))
    looped.graph.input.append(value("n", [], TensorProto.INT64))
    fixed = fix(looped)
    assert fixed is not None
    assert count_halves(fixed.model) == 2


def test_a_model_with_a_computed_scale_stays_as_it_is() -> None:
    model = cast_conv()
    for node in model.graph.node:
        if node.input[1:2] == ["abs.yFQs"]:
            node.input[1] = "scale"
    model.graph.input.append(value("scale", [], TensorProto.FLOAT))
    assert fix(model) is None


def test_pairs_of_layers_without_a_kernel_go() -> None:
    model = CastModel()
    read = model.chain(model.op("Abs", ["x"], "abs"), "FQH")
    result = model.conv(read, "conv")
    model.nodes[-1].op_type = "ConvTranspose"
    target = parse_target("rtx:sm86")
    codes = [f.code for f in qdq.check(model.build(result), targets=[target], weights=False)]
    assert codes == ["no-kernel", "no-kernel"]
    fixed = fix(model.build(result), targets=[target])
    assert fixed is not None
    assert count_halves(fixed.model) == 0
