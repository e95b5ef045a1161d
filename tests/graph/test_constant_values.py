"""Constants that are computed from the file: their values, and those that stay unknown."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.errors import ModelError
from qdq.graph.constant_chains import explain_unknown_value
from qdq.graph.index import GraphIndex
from tests.support.body_models import graph
from tests.support.graphs import Array, build, node, noise, run, value

W = noise(6, 4, seed=1)
BIAS = noise(6, 4, seed=2)
SIZES = np.array([6, 4], np.int64)
PRODUCT = node("MatMul", ["x", "weight"], "y", name="product")


def multiplied(
    nodes: list[onnx.NodeProto], domains: dict[str, int] | None = None, **weights: Array
) -> onnx.ModelProto:
    """Return nodes that compute `weight` [6, 4], and the product of x [2, 6] with it."""
    return build(
        [*nodes, PRODUCT], {"x": [2, 6]}, {"y": [2, 4]}, {"w": W, **weights}, domains=domains
    )


def index_of(model: onnx.ModelProto) -> GraphIndex:
    """Return the index of a model."""
    return GraphIndex(qdq.load(model))


CHAINS = {
    "low-rank sum": ([node("MatMul", ["a", "b"], "d"), node("Add", ["w", "d"], "weight")], {"a": noise(6, 2), "b": noise(2, 4)}),
    "fused projections": ([node("Concat", ["q", "k"], "weight", axis=1)], {"q": W[:, :2], "k": W[:, 2:]}),
    "weight normalization": ([node("ReduceL2", ["w"], "n", axes=[0]), node("Div", ["w", "n"], "u"), node("Mul", ["u", "g"], "weight")], {"g": noise(1, 4)}),
    "transposed and reshaped": ([node("Transpose", ["w"], "t"), node("Reshape", ["t", "s"], "weight")], {"s": SIZES}),
    "picked and repeated": ([node("Gather", ["w", "i"], "p", axis=1), node("Tile", ["p", "r"], "weight")], {"i": np.array([1, 0]), "r": np.array([1, 2])}),
    "selected": ([node("ConstantOfShape", ["s"], "z"), node("Greater", ["w", "z"], "c"), node("Where", ["c", "w", "z"], "weight")], {"s": SIZES}),
    "float16": ([node("Cast", ["h"], "weight", to=TensorProto.FLOAT)], {"h": W.astype(np.float16)}),
    "float64": ([node("Cast", ["h"], "weight", to=TensorProto.FLOAT)], {"h": W.astype(np.float64)}),
}  # fmt: skip


@pytest.mark.parametrize("chain", sorted(CHAINS))
def test_a_computed_weight_has_the_value_that_onnx_runtime_computes(chain: str) -> None:
    nodes, weights = CHAINS[chain]
    model = multiplied(nodes, **weights)
    index = index_of(model)
    assert index.is_constant("weight")
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    observed.graph.output.append(value("weight", [6, 4]))
    expected = run(observed, {"x": noise(2, 6)})[1]
    np.testing.assert_allclose(index.constant("weight"), expected, rtol=1e-6)


def test_a_chain_longer_than_pythons_stack_is_evaluated() -> None:
    nodes = []
    names = ["w", *(f"t{i}" for i in range(1199)), "weight"]
    for source, result in itertools.pairwise(names):
        nodes.append(node("Neg", [source], result))
    np.testing.assert_array_equal(index_of(multiplied(nodes)).constant("weight"), W)


def conditional(condition: bool) -> onnx.ModelProto:
    """Return a weight from an If with a constant condition, whose else branch reads x."""
    then = graph([node("Add", ["w", "b"], "sum")], [value("sum", [6, 4])])
    gram = [node("Transpose", ["x"], "xt"), node("MatMul", ["xt", "v"], "computed")]
    otherwise = graph(gram, [value("computed", [6, 4])])
    choice = node("If", ["c"], "weight", name="if", then_branch=then, else_branch=otherwise)
    return multiplied([choice], b=BIAS, v=noise(2, 4), c=np.array(condition))


def test_an_if_with_a_constant_condition_is_the_branch_that_it_takes() -> None:
    taken = index_of(conditional(condition=True))
    np.testing.assert_array_equal(taken.constant("weight"), W + BIAS)
    assert not index_of(conditional(condition=False)).is_constant("weight")


def loop() -> onnx.NodeProto:
    """Return a Loop that computes `weight` from constants."""
    body = graph(
        [node("Identity", ["go"], "going"), node("Neg", ["state"], "next")],
        [value("going", [], TensorProto.BOOL), value("next", [6, 4])],
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("state", [6, 4]),
        ],
    )
    return node("Loop", ["trips", "start", "w"], "weight", name="loop", body=body)


UNKNOWN = {
    "random": ([node("RandomNormal", [], "r", "noise", shape=[6, 4]), node("Add", ["w", "r"], "weight")], {}, "RandomNormal ('noise')"),
    "a custom operator": ([helper.make_node("Fold", ["w"], ["weight"], "fold", domain="acme")], {}, "acme.Fold ('fold')"),
    "a loop": ([loop()], {"trips": np.array(2), "start": np.array(True)}, "Loop ('loop')"),
    "too large": ([node("Expand", ["w", "s"], "big"), node("ReduceMean", ["big"], "weight", axes=[0], keepdims=0)], {"s": np.array([1 << 27, 6, 4])}, "'big', which is computed from constants, would take"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(UNKNOWN))
def test_a_weight_of_unknown_value_keeps_its_layer_in_float(kind: str) -> None:
    nodes, weights, cause = UNKNOWN[kind]
    model = multiplied(nodes, {"acme": 1}, **weights)
    assert cause in explain_unknown_value(index_of(model), "weight")
    plan = qdq.plan(model)
    assert plan.placements == ()
    reasons = {(item.edge.node, item.edge.slot): item.because for item in plan.left_float}
    assert reasons["product", 1] == "unknown"
    assert reasons["product", 0] == "incomplete"


def test_a_computed_activation_has_no_unknown_value() -> None:
    model = build(
        [node("Foo", ["x"], "a", domain="acme"), node("MatMul", ["a", "w"], "y")],
        {"x": [2, 6]},
        {"y": [2, 4]},
        {"w": W},
        domains={"acme": 1},
    )
    assert explain_unknown_value(index_of(model), "a") == ""


def test_a_constant_that_cannot_be_computed_is_named() -> None:
    model = multiplied([node("Add", ["w", "b"], "weight")], b=noise(5, 3))
    with pytest.raises(ModelError, match="constant 'weight' cannot be computed"):
        index_of(model).constant("weight")


@pytest.mark.parametrize("opset", [13, 17, 19])
@pytest.mark.filterwarnings("error")
def test_a_pair_of_constants_is_computed_at_any_opset(opset: int) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "scale"], "integers"),
        node("DequantizeLinear", ["integers", "scale"], "weight"),
    ]
    model = multiplied(nodes, scale=np.float32(2**-7))
    model.opset_import[0].version = opset
    values = index_of(model).constant("weight")
    assert values == pytest.approx(np.clip(W, 0, 255 / 128), abs=2**-8)


@pytest.mark.filterwarnings("error")
def test_a_pair_whose_scale_is_zero_is_computed_without_a_warning() -> None:
    nodes = [
        node("QuantizeLinear", ["w", "scale"], "integers"),
        node("DequantizeLinear", ["integers", "scale"], "weight"),
    ]
    model = multiplied(nodes, scale=np.float32(0))
    values = index_of(model).constant("weight")
    assert values is not None
