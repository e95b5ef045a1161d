"""Live nodes: those that an output of the model depends on, in bodies too."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

import qdq
from qdq.graph.liveness import find_live_nodes
from tests.support.body_models import graph
from tests.support.graphs import build, node, noise, value

WEIGHTS = {"w": noise(4, 4, seed=1), "v": noise(4, 4, seed=2)}
MATRIX = [4, 4]
FLAG = TensorProto.BOOL


def product(read: str, weight: str, result: str) -> onnx.NodeProto:
    """Return a MatMul that is named after its result."""
    return node("MatMul", [read, weight], result, name=result)


def live_labels(model: onnx.ModelProto) -> set[str]:
    """Return the live nodes of a model, each after the path of its body."""
    nodes = find_live_nodes(model.graph)
    return {f"{path}/{label}" if path else label for path, label in nodes}


def quantized_nodes(model: onnx.ModelProto) -> set[str]:
    """Return the labels of the nodes that get pairs."""
    return {placement.edge.node for placement in qdq.plan(model).placements}


def test_nodes_behind_the_last_output_are_dead() -> None:
    nodes = [
        product("x", "w", "y"),
        product("y", "v", "unread"),
        node("Relu", ["unread"], "dead", name="dead"),
    ]
    model = build(nodes, {"x": MATRIX}, {"y": MATRIX}, WEIGHTS)
    assert live_labels(model) == {"y"}
    assert quantized_nodes(model) == {"y"}
    reasons = {item.edge.node: item.because for item in qdq.plan(model).left_float}
    assert reasons["unread"] == "unused"


def test_a_dead_reader_does_not_hide_a_residual_add() -> None:
    nodes = [
        node("Conv", ["x", "k"], "c", name="c"),
        node("Sigmoid", ["c"], "unread"),
        node("Add", ["c", "x"], "s", name="add"),
        node("Conv", ["s", "k"], "y", name="y"),
    ]
    shape = [1, 4, 5, 5]
    model = build(nodes, {"x": shape}, {"y": shape}, {"k": noise(4, 4, 1, 1)})
    placed = {(p.edge.node, p.edge.slot) for p in qdq.plan(model).placements}
    assert ("add", 1) in placed


def test_a_dead_layer_does_not_make_its_tensor_quantized() -> None:
    nodes = [
        product("x", "w", "p"),
        node("Add", ["p", "x"], "s", name="add"),
        product("x", "v", "unread"),
        node("Relu", ["s"], "y"),
    ]
    model = build(nodes, {"x": MATRIX}, {"y": MATRIX}, WEIGHTS)
    assert "unread" not in quantized_nodes(model)


def test_a_result_of_an_if_that_nothing_reads_is_dead_in_both_branches() -> None:
    def branch(name: str) -> onnx.GraphProto:
        results = [value(f"{name}_a", MATRIX), value(f"{name}_b", MATRIX)]
        return graph([product("x", "w", f"{name}_a"), product("x", "v", f"{name}_b")], results)

    choice = node(
        "If", ["c"], ["y", "other"], name="if", then_branch=branch("t"), else_branch=branch("e")
    )
    model = build([choice], {"x": MATRIX}, {"y": MATRIX}, WEIGHTS)
    model.graph.input.append(value("c", [], FLAG))
    assert live_labels(model) == {"if", "if.then_branch/t_a", "if.else_branch/e_a"}
    assert quantized_nodes(model) == {"t_a", "e_a"}


def looped(*, reads_second_state: bool) -> onnx.ModelProto:
    """Return a Loop of two states, of which the model reads the first.

    The first state depends on the second where `reads_second_state` is true.
    """
    body = graph(
        [
            node("Identity", ["go"], "going", name="going"),
            product("s1", "w", "n1"),
            product("s2", "v", "n2"),
            node("Add", ["n1", "s2" if reads_second_state else "s1"], "sum", name="sum"),
            product("s1", "v", "scanned"),
        ],
        [
            value("going", [], FLAG),
            *(value(name, MATRIX) for name in ("sum", "n2", "scanned")),
        ],
        [
            value("i", [], TensorProto.INT64),
            value("go", [], FLAG),
            value("s1", MATRIX),
            value("s2", MATRIX),
        ],
    )
    nodes = [
        product("x", "w", "first"),
        product("x", "v", "second"),
        node("Loop", ["trips", "start", "first", "second"], ["y", "u", "rows"], "loop", body=body),
    ]
    constants = {"trips": np.array(2), "start": np.array(True)}
    return build(nodes, {"x": MATRIX}, {"y": MATRIX}, {**WEIGHTS, **constants})


def test_a_state_of_a_loop_is_live_where_a_live_result_depends_on_it() -> None:
    body = "loop.body"
    first = {"first", "loop", f"{body}/going", f"{body}/n1", f"{body}/sum"}
    assert live_labels(looped(reads_second_state=False)) == first
    assert live_labels(looped(reads_second_state=True)) == {*first, "second", f"{body}/n2"}


def test_a_scan_keeps_the_rows_that_are_read() -> None:
    body = graph(
        [
            node("Add", ["s", "r"], "sn", name="sn"),
            product("r2", "w", "row"),
            product("r2", "v", "unread"),
        ],
        [value("sn", [4]), value("row", [1, 4]), value("unread", [1, 4])],
        [value("s", [4]), value("r", [4])],
    )
    body.node.insert(0, node("Unsqueeze", ["r", "axis"], "r2", name="r2"))
    scan = node("Scan", ["z", "x"], ["end", "y", "u"], "scan", body=body, num_scan_inputs=1)
    constants = {"z": np.zeros(4, np.float32), "axis": np.array([0])}
    model = build([scan], {"x": MATRIX}, {"y": [4, 1, 4]}, {**WEIGHTS, **constants})
    assert live_labels(model) == {"scan", "scan.body/r2", "scan.body/row"}
