"""Models whose nodes have bodies: If, Loop and Scan."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.graphs import Array, build, node, noise, value

MATRIX = {"w": noise(4, 4, seed=3) / 2, "v": noise(4, 4, seed=4) / 2}


def graph(
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    inputs: list[onnx.ValueInfoProto] | None = None,
    **more: Any,
) -> onnx.GraphProto:
    """Return a body."""
    return helper.make_graph(nodes, "body", inputs or [], outputs, **more)


def branch(name: str, weight: str, read: str = "r", result: str = "") -> onnx.GraphProto:
    """Return a body that multiplies a tensor from outside with a weight from outside."""
    result = result or f"{name}_y"
    return graph(
        [node("MatMul", [read, weight], result, name=f"{name}_matmul")], [value(result, [2, 4])]
    )


def build_if(
    then: onnx.GraphProto, otherwise: onnx.GraphProto, **weights: Array
) -> onnx.ModelProto:
    """Return Relu, an If over two bodies, and a MatMul: x [2,4] and the condition c to y [2,4]."""
    model = build(
        [node("Relu", ["x"], "r"), node("If", ["c"], "i", name="if", then_branch=then, else_branch=otherwise), node("MatMul", ["i", "v"], "y")],
        {"x": [2, 4]}, {"y": [2, 4]}, {**MATRIX, **weights},
    )  # fmt: skip
    if "c" not in weights:
        model.graph.input.append(value("c", [], TensorProto.BOOL))
    return model


def branching() -> onnx.ModelProto:
    """Return an If whose branches multiply r with w and with v."""
    return build_if(branch("then", "w"), branch("else", "v"))


def samples(model: onnx.ModelProto) -> list[dict[str, Array]]:
    """Return feeds of noise, for every combination of the model's conditions."""
    conditions = [
        i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.BOOL
    ]
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    values = itertools.product([True, False], repeat=len(conditions))
    return [
        {"x": noise(*shape, seed=i), **dict(zip(conditions, map(np.array, chosen), strict=True))}
        for i, chosen in enumerate(values)
    ]
