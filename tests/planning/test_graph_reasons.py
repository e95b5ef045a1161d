"""Edges that the graph keeps in float: constants, layers without effect, other float types."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import qdq
from qdq.errors import ModelError
from tests.support.graphs import Array, build, node, noise, run

WEIGHT = noise(8, 4, seed=1)
UNEVEN = WEIGHT * np.array([50.0, 1.0, 0.1, 0.01], np.float32)

#: Nodes that make the weight `w` [8, 4] of a MatMul from constants, and these constants.
BUILT_WEIGHTS: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "a sum of low rank (LoRA)": (
        [node("MatMul", ["a", "b"], "d"), node("Add", ["base", "d"], "w")],
        {"a": noise(8, 2, seed=2), "b": noise(2, 4, seed=3), "base": UNEVEN},
    ),
    "a concatenation (fused QKV)": (
        [node("Concat", ["q", "k"], "w", axis=1)],
        {"q": WEIGHT[:, :2], "k": WEIGHT[:, 2:] * np.float32(0.01)},
    ),
    "a weight norm": (
        [
            node("ReduceL2", ["v"], "length", axes=[0]),
            node("Div", ["v", "length"], "unit"),
            node("Mul", ["unit", "g"], "w"),
        ],
        {"v": UNEVEN, "g": np.array([[3.0, 1.0, 0.2, 0.01]], np.float32)},
    ),
    "a transposed table of rows": (
        [
            node("Gather", ["rows", "order"], "picked"),
            node("Transpose", ["picked"], "w", perm=[1, 0]),
        ],
        {"rows": UNEVEN.T.copy(), "order": np.array([3, 2, 1, 0])},
    ),
    "a mask (pruning)": (
        [node("Greater", ["base", "zero"], "mask"), node("Where", ["mask", "base", "zero"], "w")],
        {"base": UNEVEN, "zero": np.float32(0.0)},
    ),
    "a product of a constant layer": (
        [node("MatMul", ["a", "b"], "w")],
        {"a": noise(8, 8, seed=4), "b": UNEVEN},
    ),
}


def multiply(nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> onnx.ModelProto:
    """Return a model that multiplies its input with the weight that nodes make."""
    layer = node("MatMul", ["x", "w"], "y", name="layer")
    return build([*nodes, layer], {"x": [1, 8]}, ["y"], weights)


def left_reasons(model: onnx.ModelProto) -> dict[str, str]:
    """Return why edges stay in float, by edge."""
    return {str(item.edge): item.because for item in qdq.plan(model).left_float}


@pytest.mark.parametrize("name", BUILT_WEIGHTS)
def test_a_weight_that_is_computed_from_constants_has_channel_scales_at_its_layer(
    name: str,
) -> None:
    nodes, weights = BUILT_WEIGHTS[name]
    model = multiply(nodes, weights)
    plan = qdq.plan(model)
    assert {str(p.edge) for p in plan.placements} == {"x -> layer[0]", "w -> layer[1]"}
    samples = [{"x": noise(1, 8, seed=seed)} for seed in range(4)]
    quantized = qdq.quantize(model, samples)
    scales = next(pair for pair in quantized.scales.by_pair if pair.tensor == "w")
    assert len(scales.scales) == WEIGHT.shape[1]
    (expected,) = run(model, samples[0])
    (actual,) = run(quantized.model, samples[0])
    # One scale for all channels leaves a relative error near 1 in the small ones.
    assert (
        np.abs(actual - expected) <= 0.1 * np.abs(expected) + 0.05 * np.abs(expected).mean(0)
    ).all()
    assert qdq.strip(quantized.model) == qdq.load(model).model
    assert qdq.check(quantized.model) == ()


def test_a_sum_with_a_constant_table_still_gets_its_pair() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Concat", ["first", "second"], "table", axis=1),
        node("Add", ["a", "table"], "s", name="position"),
        node("MatMul", ["s", "v"], "y", name="layer"),
    ]
    weights = {
        "w": noise(8, 8), "v": noise(8, 4),
        "first": noise(1, 4, seed=5), "second": noise(1, 4, seed=6),
    }  # fmt: skip
    model = build(nodes, {"x": [1, 8]}, ["y"], weights)
    plan = qdq.plan(model)
    assert not {p.edge.node for p in plan.placements} & {"table_node"}
    assert {"s -> layer[0]", "v -> layer[1]"} <= {str(p.edge) for p in plan.placements}


def test_a_layer_without_effect_on_an_output_stays_in_float() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "unused", name="dead"),
        node("MatMul", ["x", "w"], "y", name="live"),
    ]
    model = build(nodes, {"x": [1, 8]}, ["y"], {"w": WEIGHT})
    quantized = qdq.quantize(model, [{"x": noise(1, 8)}])
    assert {p.edge.node for p in quantized.plan.placements} == {"live"}
    assert left_reasons(model) == {"x -> dead[0]": "unused", "w -> dead[1]": "unused"}
    assert qdq.check(quantized.model) == ()
    validation = qdq.validate(model, quantized.model, targets=[qdq.parse_target("trt:sm80")])
    assert validation.engines[0].broken_promises == ()


@pytest.mark.parametrize(
    ("elem_type", "name"), [(TensorProto.DOUBLE, "float64"), (TensorProto.BFLOAT16, "bfloat16")]
)
def test_layers_of_other_float_types_stay_in_float_and_the_plan_names_the_type(
    elem_type: int, name: str
) -> None:
    nodes = [
        node("Cast", ["x"], "inner", to=elem_type),
        node("Cast", ["w"], "inner_weight", to=elem_type),
        node("MatMul", ["inner", "inner_weight"], "a", name="other"),
        node("Add", ["a", "inner"], "s", name="skip"),
        node("Cast", ["s"], "f", to=TensorProto.FLOAT),
        node("MatMul", ["f", "v"], "y", name="layer"),
    ]
    weights = {"w": noise(8, 8), "v": WEIGHT}
    model = build(nodes, {"x": [1, 8]}, ["y"], weights, opset=22, ir=10)
    plan = qdq.plan(model)
    assert {p.edge.node for p in plan.placements} == {"layer"}
    reasons = left_reasons(model)
    assert reasons["inner -> other[0]"] == "type"
    assert any(f"float because their tensors are {name}" in note for note in plan.notes)
    assert qdq.check(model)[0].code == "not-quantized"


def test_a_model_of_bfloat16_alone_is_refused_by_its_type() -> None:
    layer = node("MatMul", ["x", "w"], "y", name="layer")
    model = build([layer], {"x": [1, 8]}, ["y"], {}, dtype=TensorProto.BFLOAT16, opset=22, ir=10)
    weight = onnx.helper.make_tensor("w", TensorProto.BFLOAT16, [8, 4], WEIGHT.ravel())
    model.graph.initializer.append(weight)
    with pytest.raises(ModelError, match=r"nothing to quantize: its layer is bfloat16"):
        qdq.quantize(model, [{"x": noise(1, 8)}])


def test_a_weight_of_unknown_value_keeps_its_layer_in_float() -> None:
    nodes = [
        node("RandomNormal", [], "r", shape=[8, 4], seed=1.0),
        node("Add", ["r", "b"], "w"),
        node("MatMul", ["x", "w"], "a", name="random"),
        node("MatMul", ["a", "v"], "y", name="layer"),
    ]
    model = build(nodes, {"x": [1, 8]}, ["y"], {"b": WEIGHT, "v": noise(4, 4)})
    plan = qdq.plan(model)
    assert {p.edge.node for p in plan.placements} == {"layer"}
    assert left_reasons(model)["w -> random[1]"] == "unknown"


def test_float16_constants_of_a_float32_model_do_not_raise_its_opset() -> None:
    nodes = [node("Cast", ["half"], "w", to=TensorProto.FLOAT)]
    model = multiply(nodes, {"half": UNEVEN.astype(np.float16)})
    quantized = qdq.quantize(model, [{"x": noise(1, 8)}])
    assert quantized.model.opset_import[0].version == model.opset_import[0].version
    assert qdq.strip(quantized.model).SerializeToString() == model.SerializeToString()


def test_float16_pairs_in_a_body_raise_the_opset_too() -> None:
    body_layer = node("MatMul", ["h", "w"], "r", name="inside")
    branch = onnx.helper.make_graph(
        [node("Cast", ["x"], "h", to=TensorProto.FLOAT16), body_layer],
        "branch", [], [onnx.helper.make_tensor_value_info("r", TensorProto.FLOAT16, [1, 4])],
    )  # fmt: skip
    other = onnx.helper.make_graph(
        [node("Cast", ["z"], "r", to=TensorProto.FLOAT16, name="zero")],
        "other", [], [onnx.helper.make_tensor_value_info("r", TensorProto.FLOAT16, [1, 4])],
    )  # fmt: skip
    nodes = [
        node("Cast", ["m"], "condition", to=TensorProto.BOOL),
        node("If", ["condition"], "half", name="if", then_branch=branch, else_branch=other),
        node("Cast", ["half"], "y", to=TensorProto.FLOAT),
        node("ReduceMax", ["x"], "m", keepdims=0),
    ]
    weights = {"w": UNEVEN.astype(np.float16), "z": np.zeros((1, 4), np.float32)}
    model = build([nodes[3], *nodes[:3]], {"x": [1, 8]}, ["y"], weights)
    quantized = qdq.quantize(model, [{"x": noise(1, 8)}])
    assert quantized.model.opset_import[0].version >= 19
    onnx.checker.check_model(quantized.model, full_check=True)
