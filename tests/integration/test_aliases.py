"""Aliases change nothing: strewn into a network, they leave the plan, the scales, the findings and the predicted engine as they were."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qdq
from qdq.engines.engine import EngineLayer, LayerTensor
from qdq.engines.prediction.predictor import predict_engine
from qdq.planning.decisions import Plan
from qdq.quantized.model import QuantizedModel
from qdq.target import Target, parse_target
from qdq.testing.case_files import parse_case
from tests.support.aliases import strew_aliases
from tests.support.body_models import branching, samples
from tests.support.graphs import DIGITS, EVERYTHING, Array, draw_graphs, models, random_feed
from tests.support.paths import NETWORKS

seldom = draw_graphs(15)
TARGET = parse_target("trt:sm80")

#: A residual network with one block whose terms are joined by `{join}`.
BLOCKS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,8,8] x) => (float[1,4,8,8] y)
<float[8,3,3,3] k, float[8,8,3,3] u, float[8,8,3,3] v, float[4,8,1,1] w>
{{ [stem] a = Conv <pads = [1,1,1,1]> (x, k)
  [start] r = Relu (a)
  [first] b = Conv <pads = [1,1,1,1]> (r, u)
  [middle] c = Relu (b)
  [second] d = Conv <pads = [1,1,1,1]> (c, v)
  {join}
  [after] t = Relu (s)
  [last] y = Conv (t, w) }}
"""

Place = tuple[str, str, int]


def block(join: str) -> onnx.ModelProto:
    """Return a residual network that joins its terms by some nodes."""
    return parse_case(BLOCKS.format(join=join))


def decisions(plan: Plan) -> dict[Place, str]:
    """Return the decision about each edge by graph, node and slot."""
    decided = {}
    for item in plan.placements:
        edge = item.edge
        decided[edge.graph, edge.node, edge.slot] = f"{item.quantizer} {item.because}"
    for left in plan.left_float:
        edge = left.edge
        decided[edge.graph, edge.node, edge.slot] = f"float {left.because}"
    return decided


def scales(model: onnx.ModelProto) -> dict[Place, Array]:
    """Return the scales of each pair by graph, node and slot."""
    by_place = {}
    for pair in QuantizedModel(model).edges:
        assert pair.scales is not None
        by_place[pair.edge.graph, pair.edge.node, pair.edge.slot] = pair.scales
    return by_place


def layers(model: onnx.ModelProto, target: Target = TARGET) -> Counter[tuple[object, ...]]:
    """Return the layers of the predicted engine, without the names of nodes and tensors."""
    engine = predict_engine(model, target)
    return Counter(_form(layer) for layer in engine.layers)


def _form(layer: EngineLayer) -> tuple[object, ...]:
    return layer.kind, layer.fusion_rule, _tensors(layer.inputs), _tensors(layer.outputs)


def _tensors(tensors: tuple[LayerTensor, ...]) -> tuple[object, ...]:
    return tuple(sorted((tensor.dims, tensor.dtype, tensor.format) for tensor in tensors))


def require_same(model: onnx.ModelProto, seed: int, feeds: list[dict[str, Array]]) -> None:
    """Assert that a model with aliases is planned, scaled, checked and predicted as without."""
    plain, strewn = strew_aliases(model, seed, share=0.0), strew_aliases(model, seed)
    assert len(strewn.graph.node) > len(plain.graph.node)
    assert decisions(qdq.plan(strewn)) == decisions(qdq.plan(plain))
    plain_result, strewn_result = (qdq.quantize(it, data=feeds).model for it in (plain, strewn))
    plain_scales, strewn_scales = scales(plain_result), scales(strewn_result)
    assert strewn_scales.keys() == plain_scales.keys()
    for place, expected in plain_scales.items():
        np.testing.assert_allclose(strewn_scales[place], expected, rtol=1e-5, err_msg=str(place))
    assert [finding.code for finding in qdq.check(strewn_result)] == []
    assert layers(strewn) == layers(plain)
    assert layers(strewn_result) == layers(plain_result)


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("seed", [1, 2])
def test_aliases_change_nothing_in_a_network(name: str, seed: int) -> None:
    model = onnx.load(NETWORKS / f"{name}.onnx")
    require_same(model, seed, [random_feed(model, number) for number in range(2)])


@pytest.mark.parametrize(
    "join",
    [
        "[join] s = Add (d, r)",
        "[join] s = Sum (r, d)",
        "[join] s = Sum (r, d, a)",
        "[low] e = Clip (d) [join] s = Add (e, r)",
        "[gate] g = Sigmoid (d) [silu] e = Mul (d, g) [join] s = Add (r, e)",
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_aliases_change_nothing_in_a_residual_block(join: str, seed: int) -> None:
    model = block(join)
    require_same(model, seed, [random_feed(model, number) for number in range(2)])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_aliases_change_nothing_in_the_branches_of_an_if(seed: int) -> None:
    model = branching()
    require_same(model, seed, samples(model))


@seldom
@given(models(operators=EVERYTHING, most=7), st.integers(0, 999))
def test_aliases_change_no_decision_in_a_random_network(model: onnx.ModelProto, seed: int) -> None:
    plain, strewn = strew_aliases(model, seed, share=0.0), strew_aliases(model, seed)
    for rule_set in ("tensorrt", "outputs-in-float", "dla"):
        rules = qdq.load_rules([rule_set])
        assert decisions(qdq.plan(strewn, rules=rules)) == decisions(qdq.plan(plain, rules=rules))
    assert layers(strewn) == layers(plain)


@pytest.mark.parametrize(
    ("sum_of_two", "add"),
    [("[join] s = Sum (d, r)", "[join] s = Add (d, r)"), ("[join] s = Sum (r, d)", "[join] s = Add (r, d)")],
)  # fmt: skip
def test_a_sum_of_two_is_quantized_as_an_add(sum_of_two: str, add: str) -> None:
    model, expected = block(sum_of_two), block(add)
    feeds = [random_feed(model)]
    result, expected_result = (qdq.quantize(it, data=feeds).model for it in (model, expected))
    assert decisions(qdq.plan(model)) == decisions(qdq.plan(expected))
    assert layers(result) == layers(expected_result)
    assert qdq.check(result) == qdq.check(expected_result)


def test_a_skip_without_pair_is_found_through_aliases() -> None:
    model = block("[same] e = Identity (r) [drop] f = Dropout (d) [join] s = Sum (e, f)")
    result = qdq.quantize(model, data=[random_feed(model)]).model
    join = next(node for node in result.graph.node if node.name == "join")
    join.input[0] = "e"
    findings = [(finding.code, finding.where) for finding in qdq.check(result)]
    assert findings == [("residual-in-float", "e -> join[0]")]


def test_a_weight_that_two_layers_read_once_through_an_alias_has_one_scale() -> None:
    model = parse_case(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,8] x) => (float[2,8] y)'
        "<float[8,8] w> { [same] v = Identity (w) [first] a = MatMul (x, w) "
        "[relu] r = Relu (a) [second] y = MatMul (r, v) }"
    )
    by_place = scales(qdq.quantize(model, data=[random_feed(model)]).model)
    np.testing.assert_array_equal(by_place["", "first", 1], by_place["", "second", 1])
