"""Small quantized models, written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.graphs import (
    Array,
    build,
    noise,
    value,
)
from tests.support.graphs import node as make_node

Model = onnx.ModelProto


def pair(tensor: str, scale: str = "s", zero: str = "z", **attributes: Any) -> list[onnx.NodeProto]:
    """Return a Q and a DQ on a tensor, whose output ends in ``_dq``."""
    return [
        make_node("QuantizeLinear", [tensor, scale, zero], f"{tensor}_q", **attributes),
        make_node("DequantizeLinear", [f"{tensor}_q", scale, zero], f"{tensor}_dq", **attributes),
    ]


CONSTANTS: dict[str, Array] = {
    "s": np.array(0.5, np.float32),
    "t": np.array(0.125, np.float32),
    "z": np.array(0, np.int8),
    "u": np.array(3, np.uint8),
    "w": noise(4, 3, 1, 1),
    "v": noise(2, 4, 1, 1, seed=1),
    "ws": np.array([0.25, 0.5, 0.5, 1.0], np.float32),
    "wt": np.array([0.25, 0.5, 2.0, 1.5], np.float32),
    "wz": np.zeros(4, np.int8),
}


def small(
    *,
    x: str = "x",
    c: str = "c",
    p: str = "p",
    pairs: dict[str, tuple[str, str]] | None = None,
    weight: tuple[str, str] | None = None,
) -> Model:
    """Return Conv, MaxPool, Conv and a second reader of x; each of x, c and p is read as it is or as ``x_dq``, of the pair that `pairs` has."""
    before = {
        name: pair(name, *(pairs or {}).get(name, ("s", "z"))) if f"{name}_dq" in (x, c, p) else []
        for name in ("x", "c", "p")
    }
    w = "w" if weight is None else "w_dq"
    nodes = [
        *before["x"],
        *(pair("w", *weight, axis=0) if weight else []),
        make_node("Conv", [x, w], "c", name="first"),
        *before["c"],
    ]
    nodes += [
        make_node("MaxPool", [c], "p", name="pool", kernel_shape=[2, 2]),
        *before["p"],
        make_node("Conv", [p, "v"], "y", name="second"),
    ]
    return build(
        [*nodes, make_node("Sigmoid", ["x"], "side", name="side")],
        {"x": [1, 3, 4, 4]},
        ["y", "side"],
        CONSTANTS,
    )


def branches(quantized: bool, name: str = "if") -> Model:
    """Return an If whose then-branch multiplies with w, behind a pair or not."""
    body = [
        *(pair("r") if quantized else []),
        make_node("MatMul", ["r_dq" if quantized else "r", "w"], "a", name="product"),
    ]
    then = helper.make_graph(body, "then", [], [value("a", [2, 4])])
    other = helper.make_graph(
        [make_node("Neg", ["r"], "b", name="negative")], "other", [], [value("b", [2, 4])]
    )
    nodes = [
        make_node("Relu", ["x"], "r"),
        make_node("If", ["c"], "y", name=name, then_branch=then, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes,
        "tested",
        [value("x", [2, 4]), value("c", [], onnx.TensorProto.BOOL)],
        [value("y", [2, 4])],
        [numpy_helper.from_array(CONSTANTS[n], n) for n in "sz"]
        + [numpy_helper.from_array(noise(4, 4), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
