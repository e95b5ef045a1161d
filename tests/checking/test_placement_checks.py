"""Pairs against the plan: on dead layers, on bfloat16 tensors, and among the constants of a weight."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

import qdq
from tests.support.graphs import build, node, noise
from tests.support.pair_models import CONSTANTS, pair

MERGE = node("Add", ["w_dq", "d"], "merged", name="merge")
WEIGHTS = {"w": noise(6, 4), "d": noise(6, 4, seed=1)}


def paired_product(
    nodes: Sequence[onnx.NodeProto], weight: str, *more: onnx.NodeProto
) -> onnx.ModelProto:
    """Return the product of x, which has a pair, with a weight, between other nodes."""
    product = node("MatMul", ["x_dq", weight], "y", name="product")
    constants = {name: CONSTANTS[name] for name in ("s", "z", "wz")}
    constants["ws"] = np.full(4, 0.02, np.float32)
    return build(
        [*pair("x"), *nodes, product, *more],
        {"x": [2, 6]},
        {"y": [2, 4]},
        {**constants, **WEIGHTS},
    )


def codes(model: onnx.ModelProto) -> list[str]:
    """Return the codes of the findings about a model."""
    return [finding.code for finding in qdq.check(model)]


def test_pairs_on_layers_that_no_output_depends_on_are_not_judged() -> None:
    dead = node("MatMul", ["x_dq", "w_dq"], "unread", name="dead")
    half = node("MatMul", ["x_dq", "d"], "unread_too", name="half")
    model = paired_product(pair("w", "ws", "wz", axis=1), "w_dq", dead, half)
    assert codes(model) == []
    repaired = qdq.quantize(model, None)
    readers = {n.name: list(n.input) for n in repaired.model.graph.node}
    assert readers["dead"] == ["x", "w"]
    assert readers["half"] == ["x", "d"]


def test_a_pair_inside_the_constants_of_a_weight_is_in_the_wrong_place() -> None:
    model = paired_product([*pair("w", "ws", "wz", axis=1), MERGE], "merged")
    assert codes(model) == ["half-quantized", "unwanted-pair"]
    repaired = qdq.quantize(model, [{"x": noise(2, 6)}])
    assert repaired.findings == ()
    assert [p.edge.tensor for p in repaired.plan.placements] == ["x", "merged"]


def test_a_pair_right_before_the_layer_is_in_the_right_place() -> None:
    merge = node("Add", ["w", "d"], "merged", name="merge")
    model = paired_product([merge, *pair("merged", "ws", "wz", axis=1)], "merged_dq")
    assert codes(model) == []
    kept = qdq.quantize(model, None)
    scales = {scale.tensor: scale.scales for scale in kept.scales.by_pair}
    assert scales["merged"] == tuple(np.full(4, 0.02, np.float32).tolist())


def test_bfloat16_pairs_are_not_judged() -> None:
    scale = np.array(0.01, ml_dtypes.bfloat16)
    model = build(
        [*pair("x"), *pair("w"), node("MatMul", ["x_dq", "w_dq"], "y")],
        {"x": [2, 6]},
        {"y": [2, 4]},
        {"s": scale, "z": np.array(0, np.int8), "w": WEIGHTS["w"].astype(ml_dtypes.bfloat16)},
        opset=21,
        ir=10,
        dtype=TensorProto.BFLOAT16,
    )
    assert "unwanted-pair" not in codes(model)
