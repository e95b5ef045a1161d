"""A graph as compilers read it: which nodes are aliases, and what the view says of the others."""

from __future__ import annotations

import onnx
import pytest

from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.testing.case_files import parse_case
from tests.support.body_models import branch, build_if
from tests.support.graphs import node

CONSTANTS = (
    "float[4,4,1,1] w, bool yes = {1}, bool no = {0}, float ratio = {0.5}, "
    "int64[4] same = {1, 4, 8, 8}, int64[2] flat = {4, 64}, int64[4] ones = {1, 1, 1, 1}"
)


def view(nodes: str, outputs: str = "float[1,4,8,8] y", opset: int = 17) -> CompilerView:
    """Return the view of a graph of one input x."""
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"g (float[1,4,8,8] x, bool train) => ({outputs}) <{CONSTANTS}> {{ {nodes} }}"
    )
    return CompilerView(GraphIndex(load(parse_case(text))))


@pytest.mark.parametrize(
    "alias",
    [
        "Identity (c)",
        "Dropout (c)",
        "Dropout (c, ratio)",
        "Dropout (c, ratio, no)",
        "Cast <to = 1> (c)",
        "CastLike (c, x)",
        "Sum (c)",
        "Max (c)",
        "Min (c)",
        "Mean (c)",
        "Concat <axis = 1> (c)",
        "Transpose <perm = [0, 1, 2, 3]> (c)",
        "Reshape (c, same)",
        "Expand (c, ones)",
        "Tile (c, ones)",
    ],
)
def test_readers_of_an_alias_read_its_origin(alias: str) -> None:
    graph = view(f"[conv] c = Conv (x, w) [it] a = {alias} [last] y = Relu (a)")
    assert [item.label for item in graph.nodes] == ["conv", "last"]
    edge = graph.edge(graph.by_label["last"], 0)
    assert edge.tensor == "c"
    assert graph.file_edge(edge).tensor == "a"
    assert graph.sole_consumer("c") is graph.by_label["last"]


@pytest.mark.parametrize(
    "other",
    [
        "Dropout (c, ratio, yes)",
        "Dropout (c, ratio, train)",
        "Cast <to = 10> (c)",
        "Sum (c, x, x)",
        "Concat <axis = 0> (c, x)",
        "Transpose <perm = [0, 1, 3, 2]> (c)",
        "Transpose (c)",
        "Reshape (c, flat)",
        "Relu (c)",
    ],
)
def test_other_nodes_stay(other: str) -> None:
    graph = view(f"[conv] c = Conv (x, w) [it] a = {other} [last] y = Abs (a)", "y")
    assert [item.label for item in graph.nodes] == ["conv", "it", "last"]
    assert graph.by_label["last"].inputs == ("a",)


def test_the_origin_of_an_alias_is_the_output() -> None:
    graph = view("[conv] c = Conv (x, w) [one] a = Identity (c) [two] y = Dropout (a)")
    assert list(graph.outputs) == ["c"]
    assert graph.sole_consumer("c") is None


def test_a_dropout_stays_for_its_mask_and_its_readers_read_the_origin() -> None:
    graph = view(
        "[conv] c = Conv (x, w) [drop] a, m = Dropout (c) [last] y = Relu (a)",
        "float[1,4,8,8] y, bool[1,4,8,8] m",
    )
    assert [item.label for item in graph.nodes] == ["conv", "drop", "last"]
    assert graph.by_label["last"].inputs == ("c",)


def test_a_sum_of_two_is_an_add_and_still_a_sum_to_rules() -> None:
    graph = view("[two] a = Sum (x, w) [three] y = Sum (a, x, w)")
    assert [item.op for item in graph.nodes] == ["Add", "Sum"]
    assert graph.operator_names(graph.by_label["two"]) == {"Add", "Sum"}


def test_a_weight_that_is_an_alias_is_constant() -> None:
    graph = view("[same] v = Identity (w) [conv] y = Conv (x, v)")
    assert graph.by_label["conv"].inputs == ("x", "w")
    assert graph.is_constant("w")
    assert graph.constant("w").shape == (4, 4, 1, 1)


def test_a_constant_that_is_cast_like_a_computed_tensor_is_computed() -> None:
    graph = view("[like] v = CastLike (w, x) [conv] y = Conv (x, v)")
    assert graph.by_label["conv"].inputs == ("x", "v")
    assert not graph.is_constant("v")


def test_the_declared_shape_of_an_alias_is_that_of_its_origin() -> None:
    graph = view("[unknown] c = NonZero (x) [cast] y = Identity (c)", "int64[4,7] y")
    assert graph.shape("c") == (4, 7)


def test_bodies_read_the_origins_of_tensors_around_them() -> None:
    model = build_if(branch("then", "w", "same"), branch("else", "v"))
    nodes = list(model.graph.node)
    nodes.insert(1, node("Identity", ["r"], "same"))
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    graph = CompilerView(GraphIndex(load(model)))
    scope = graph.scopes["if.then_branch"]
    assert scope.by_label["then_matmul"].inputs == ("r", "w")
    assert scope.is_constant("w")
    assert graph.by_label["if"].captured.count("r") == 2
    assert "same" not in graph.consumers
    single = CompilerView(graph.file_index.scopes["if.then_branch"])
    assert single.by_label["then_matmul"].inputs == ("r", "w")
