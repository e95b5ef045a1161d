"""The part of a model that some tensors need, with bodies of If, Loop and Scan."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qdq.graph.bodies import list_names
from qdq.graph.subgraph import extract_subgraph, iterate_needed_nodes
from tests.support.graphs import build, convolution, node, noise, run, value

X = noise(1, 3, 6, 6, seed=4)


def test_only_the_nodes_and_weights_before_a_tensor_are_kept() -> None:
    part = extract_subgraph(convolution(), ["r"])
    assert [n.op_type for n in part.graph.node] == ["Conv", "Relu"]
    assert list_names(part.graph.initializer) == ["w1", "b1"]
    assert list_names(part.graph.output) == ["r"]
    (whole,) = run(extract_subgraph(convolution(), ["y"]), {"x": X})
    assert np.array_equal(whole, run(convolution(), {"x": X})[0])


def test_a_part_does_not_ask_for_the_weights_of_the_rest() -> None:
    model = convolution()
    for tensor in model.graph.initializer:
        model.graph.input.append(value(tensor.name, tensor.dims))
    part = extract_subgraph(model, ["r"])

    assert list_names(part.graph.input) == ["x", "w1", "b1"]
    assert run(part, {"x": X})[0].shape == (1, 4, 6, 6)


def with_branches() -> onnx.ModelProto:
    """Return an If of which each branch computes something known and something unknown."""
    branches = {}
    for number, name in enumerate(("then", "else")):
        nodes = [
            node("Mul", ["x", "k"], f"{name}_a") if number else node("Relu", ["x"], f"{name}_a"),
            node("Plug", ["unread"], f"{name}_b"),
        ]
        outputs = [value(f"{name}_{letter}", [1, 3, 6, 6]) for letter in "ba"]
        branches[f"{name}_branch"] = helper.make_graph(nodes, name, [], outputs)
    model = build(
        [node("Plug", ["x"], "unread"), node("If", ["c"], ["b", "a"], **branches)],
        {"x": [1, 3, 6, 6]},
        {"a": [1, 3, 6, 6], "b": [1, 3, 6, 6]},
        {"k": np.float32(2)},
    )
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    return model


@pytest.mark.parametrize(("condition", "expected"), [(True, np.maximum(X, 0)), (False, X * 2)])
def test_an_if_keeps_the_outputs_that_are_read(condition: bool, expected: object) -> None:
    model = with_branches()
    part = extract_subgraph(model, ["a"])
    assert "Plug" not in {n.op_type for n in iterate_needed_nodes(model.graph, ["a"])}
    (a,) = run(part, {"x": X, "c": np.array(condition)})
    assert np.array_equal(a, expected)
    assert "Plug" in {n.op_type for n in iterate_needed_nodes(model.graph, ["b"])}


def test_a_loop_keeps_its_states_and_the_stacked_outputs_that_are_read() -> None:
    body = helper.make_graph(
        [
            node("Add", ["state", "state"], "next"),
            node("Identity", ["running"], "going_on"),
            node("Plug", ["state"], "bad"),
            node("Relu", ["next"], "good"),
        ],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("running", [], TensorProto.BOOL),
            value("state", [2]),
        ],
        [
            value("going_on", [], TensorProto.BOOL),
            value("next", [2]),
            value("bad", [2]),
            value("good", [2]),
        ],
    )
    model = build(
        [node("Loop", ["count", "", "x"], ["last", "bads", "goods"], body=body)],
        {"x": [2]},
        {"last": [2], "bads": [None, 2], "goods": [None, 2]},
        {"count": np.int64(3)},
    )
    (goods,) = run(extract_subgraph(model, ["goods"]), {"x": np.array([1, -1], np.float32)})
    assert goods.tolist() == [[2, 0], [4, 0], [8, 0]]


def test_a_scan_keeps_the_axes_of_the_stacked_outputs_that_are_read() -> None:
    body = helper.make_graph(
        [
            node("Add", ["state", "row"], "next"),
            node("Plug", ["row"], "bad"),
            node("Relu", ["row"], "good"),
        ],
        "body",
        [value("state", [2]), value("row", [2])],
        [value("next", [2]), value("bad", [2]), value("good", [2])],
    )
    scan = node(
        "Scan",
        ["start", "x"],
        ["sum", "bads", "goods"],
        body=body,
        num_scan_inputs=1,
        scan_output_axes=[0, 1],
    )
    model = build(
        [scan],
        {"x": [3, 2]},
        {"sum": [2], "bads": [3, 2], "goods": [2, 3]},
        {"start": np.zeros(2, np.float32)},
    )
    x = np.array([[1, -1], [2, -2], [3, 4]], np.float32)
    (goods,) = run(extract_subgraph(model, ["goods"]), {"x": x})
    assert goods.tolist() == [[1, 2, 3], [0, 0, 4]]
