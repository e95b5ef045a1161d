"""What patterns and sizes say of graphs where rule cases cannot tell: shared nodes, casts, unknown sizes, branches and bodies."""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.graph.index import GraphIndex
from qdq.graph.layer_shapes import (
    Channels,
    attention_length,
    convolution_channels,
    kernel_shape,
    layers_to_output,
    product_rows,
    product_sizes,
    reads_graph_input,
)
from qdq.graph.patterns import (
    attention_masks,
    can_commute_with_quantization,
    find_gate,
    find_producer_before_moves,
    gelu_nodes,
    is_channel_gate,
    normalization_nodes,
    tail_nodes,
)
from qdq.testing.case_files import parse_case
from tests.support.graphs import build, node, noise, shuffled, value

NORMALIZATION = """
  [mean] m = ReduceMean (h, last)
  [centre] d = Sub (h, m)
  [wide] f = Cast <to = 1> (d)
  [square] q = Pow (f, two)
  [variance] v = ReduceMean (q, last)
  [above] e = Add (epsilon, v)
  [root] s = Sqrt (e)
  [divide] n = Div (d, s)
"""
GELU = "[scale] a = Div (x, k) [erf] b = Erf (a) [shift] c = Add (b, one) [product] d = Mul (x, c) [halve] y = Mul (d, half)"
CONSTANTS = "int64[1] last = {-1}, float two = {2.0}, float epsilon = {0.1}, float k = {1.4}, float one = {1.0}, float half = {0.5}, float[8,8] w"


def index(
    nodes: str,
    inputs: str = "float[2,8] x",
    outputs: str = "float[2,8] y",
    weights: str = CONSTANTS,
    opset: int = 21,
) -> GraphIndex:
    """Return the index of a graph in ONNX text."""
    model = parse_case(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) <{weights}> {{ {nodes} }}'
    )
    return GraphIndex(qdq.load(model))


@pytest.mark.parametrize(
    ("operator", "holds"),
    [
        ("Reshape (x, last)", True),
        ("Transpose (x)", True),
        ("MaxPool <kernel_shape = [1]> (x)", True),
        ("Tile (x, last)", True),
        ('Resize <mode = "cubic"> (x, , k)', False),
        ("Resize (x, , k)", True),
        ("Pad (x, last)", True),
        ("Pad (x, last, )", True),
        ('Pad <mode = "edge"> (x, last, one)', True),
        ("Pad (x, last, one)", False),
        ("Pad (x, last, x)", False),
        ("AveragePool <kernel_shape = [1]> (x)", False),
        ("Concat <axis = 0> (x, x)", False),
        ("Relu (x)", False),
        ("Cast <to = 10> (x)", False),
    ],
)
def test_what_commutes_with_quantization(operator: str, holds: bool) -> None:
    graph = index(f"[it] y = {operator}")
    assert can_commute_with_quantization(graph, graph.by_label["it"]) is holds


def test_moves_are_looked_through_and_nothing_else() -> None:
    graph = index(
        "[gate] s = Sigmoid (x) [turn] t = Transpose (s) [back] u = Transpose (t) [picked] p = Gather (u, last) [still] y = Identity (x)"
    )
    result = {tensor: find_producer_before_moves(graph, tensor) for tensor in ("u", "p", "y", "w")}
    assert {tensor: maker and maker.label for tensor, maker in result.items()} == {
        "u": "gate",
        "p": "picked",
        "y": None,
        "w": None,
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_normalisation_with_casts_is_found_whole_in_any_order(seed: int) -> None:
    model = index(f"[relu] h = Relu (x) {NORMALIZATION} [next] y = MatMul (n, w)").source.model
    result = normalization_nodes(GraphIndex(qdq.load(shuffled(model, seed))))
    assert result == {"mean", "centre", "square", "variance", "above", "root", "divide"}


def test_two_gelus_that_share_their_input_and_constants_are_found_apart() -> None:
    second = re.sub(r"\b([abcd])\b", r"\1_2", GELU).replace("[", "[second_").replace("y =", "z =")
    graph = index(f"{GELU} {second}", outputs="float[2,8] y, float[2,8] z")
    names = {"scale", "erf", "shift", "product", "halve"}
    assert gelu_nodes(graph) == names | {f"second_{name}" for name in names}


def test_half_a_gelu_is_none() -> None:
    for missing in (
        "[erf] b = Erf (a)",
        "[scale] a = Div (x, k)",
        "[halve] y = Mul (d, half)",
        "[shift] c = Add (b, one)",
    ):
        output, read = missing.split()[1], missing.split("(")[1].split(")")[0].split(",")[0]
        graph = index(GELU.replace(missing, f"[other] {output} = Identity ({read})"))
        assert gelu_nodes(graph) == frozenset(), missing


@pytest.mark.parametrize(
    ("nodes", "gate"),
    [
        ("g = Sigmoid (x) y = Mul (x, g)", ("g", "x")),
        ("g = HardSigmoid (x) y = Mul (g, x)", ("g", "x")),
        ("s = Sigmoid (x) g = Identity (s) y = Mul (x, g)", ("g", "x")),
        ("t = Add (x, two) c = Clip (t, k, two) g = Mul (c, half) y = Mul (x, g)", ("g", "x")),
        ("c = Clip (x, k, two) g = Mul (c, half) y = Mul (x, g)", None),
        ("g = Sigmoid (x) y = Mul (g, half)", None),
        ("g = Tanh (x) y = Mul (x, g)", None),
        ("g = Sigmoid (x) y = Add (x, g)", None),
    ],
)
def test_gates(nodes: str, gate: tuple[str, str] | None) -> None:
    graph = index(nodes)
    assert find_gate(graph, graph.producers["y"]) == gate


@pytest.mark.parametrize(
    ("plane", "weight", "holds"),
    [
        ("1,4,8,8", "1,4,1,1", True),
        ("1,4,8", "1,4,1", True),
        ("1,4,8,8", "1,1,8,8", False),
        ("1,4,8,8", "1,4,8,8", False),
        ("1,4,1,1", "1,4,1,1", False),
    ],
)
def test_a_gate_of_channels_holds_one_value_for_each(plane: str, weight: str, holds: bool) -> None:
    graph = index(
        "g = Sigmoid (s) y = Mul (x, g)",
        f"float[{plane}] x, float[{weight}] s",
        f"float[{plane}] y",
    )
    assert is_channel_gate(graph, graph.producers["y"]) is holds


@pytest.mark.parametrize(
    ("after", "holds"),
    [
        ("y = Softmax (s)", True),
        ("t = Div (s, k) u = Identity (t) y = Softmax (u)", True),
        ("t = Add (s, x) y = Softmax (t)", True),
        ("t = Relu (s) y = Softmax (t)", False),
        ("t = Mul (s, x) y = Softmax (t)", False),
        ("t = Mul (s, k) u = Add (s, x) v = Add (t, u) y = Softmax (v)", False),
    ],
)
def test_masks_in_front_of_a_softmax(after: str, holds: bool) -> None:
    graph = index(f"[mask] s = Add (x, m) {after}", "float[2,8] x, float[2,8] m")
    assert ("mask" in attention_masks(graph)) is holds


def test_what_no_weighted_layer_reads_is_the_tail() -> None:
    graph = index(
        "[a] p = Relu (x) [mm] q = MatMul (p, w) [b] r = Relu (q) [c] y = Tanh (r) [side] z = Tanh (x)",
        outputs="float[2,8] y, float[2,8] z",
    )
    assert tail_nodes(graph) == {"b", "c", "side"}


def with_body(nodes: list[onnx.NodeProto], inside: list[onnx.NodeProto]) -> GraphIndex:
    """Return the index of nodes before an If whose branches make `inside`, the last output of which is `t`."""
    branches = {
        name: helper.make_graph(inside, "body", [], [value("t", [2, 4])])
        for name in ("then_branch", "else_branch")
    }
    choice = helper.make_node("If", ["c"], ["i"], name="if", **branches)
    model = build(
        [*nodes, choice, node("Relu", ["i"], "y", name="relu")],
        {"x": [2, 4]},
        {"y": [2, 4]},
        {"w": noise(4, 4)},
    )
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    return GraphIndex(qdq.load(model))


def test_what_a_body_reads_is_no_tail_and_a_body_with_a_layer_has_none() -> None:
    graph = with_body(
        [node("Tanh", ["x"], "h", name="tanh")],
        [node("MatMul", ["h", "w"], "m", name="mm"), node("Relu", ["m"], "t", name="inner")],
    )
    assert tail_nodes(graph) == {"relu"}
    assert tail_nodes(graph.scopes["if.then_branch"]) == frozenset()
    without_layer = with_body([], [node("Tanh", ["x"], "t", name="inner")])
    assert tail_nodes(without_layer.scopes["if.then_branch"]) == {"inner"}


def test_layers_to_an_output_count_those_behind_a_body() -> None:
    outer = [node("MatMul", ["x", "w"], "h", name="mm")]
    graph = with_body(
        outer,
        [
            node("MatMul", ["h", "w"], "m", name="first"),
            node("MatMul", ["m", "w"], "t", name="second"),
        ],
    )
    graph_after = with_body(outer, [node("Relu", ["h"], "t", name="inner")])
    assert layers_to_output(graph.scopes["if.then_branch"]) == {"first": 2, "second": 1}
    assert layers_to_output(graph_after)["mm"] == 1
    looked_through = index("[if] p = Relu (x) [last] y = MatMul (p, w)")
    assert layers_to_output(looked_through) == {"if": 1, "last": 1}


def test_layers_to_an_output_take_the_shortest_branch() -> None:
    nodes = {
        "a": "[a] p = MatMul (x, w)", "b": "[b] q = MatMul (p, w)", "c": "[c] r = MatMul (q, w)",
        "short": "[short] s = Relu (p)", "join": "[join] y = Add (r, s)", "dead": "[dead] z = MatMul (x, w)",
    }  # fmt: skip
    expected = {"a": 1, "b": 2, "c": 1, "short": 0, "join": 0}
    assert layers_to_output(index(" ".join(nodes.values()))) == expected
    assert (
        layers_to_output(
            index(" ".join(nodes[n] for n in ("dead", "a", "short", "b", "c", "join")))
        )
        == expected
    )
    assert (
        layers_to_output(index(" ".join(nodes.values()), outputs="float[2,8] y, float[2,8] q"))["b"]
        == 1
    )


def test_a_pool_that_a_body_reads_stays_in_float() -> None:
    inside = [
        node("Tanh", ["p"], "t0", name="inner"),
        node("Reshape", ["t0", "flat"], "t", name="shape"),
    ]
    branches = {
        name: helper.make_graph(inside, "body", [], [value("t", [4])])
        for name in ("then_branch", "else_branch")
    }
    nodes = [
        node("Relu", ["x"], "r"), node("GlobalAveragePool", ["r"], "p", name="pool"), node("Conv", ["p", "v"], "y"),
        helper.make_node("If", ["c"], ["z"], name="if", **branches),
    ]  # fmt: skip
    model = build(
        nodes,
        {"x": [1, 4, 8, 8]},
        {"y": [1, 3, 1, 1], "z": [4]},
        {"v": noise(3, 4, 1, 1), "flat": np.array([4])},
    )
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    assert "r -> pool[0]" not in {str(p.edge) for p in qdq.plan(model).placements}


def single_node(operator: str, inputs: str, weights: str) -> tuple[GraphIndex, str]:
    """Return a graph of one node, whose result has an unknown shape."""
    return index(f"[it] y = {operator}", inputs, "float y", weights), "it"


@pytest.mark.parametrize(
    ("operator", "weight", "sizes", "window"),
    [
        ("Conv (x, w)", "float[8,3,5,1] w", Channels(3, 8, 1), (5, 1)),
        ("Conv <group = 4> (x, w)", "float[8,2,3] w", Channels(2, 8, 4), (3,)),
        ("ConvTranspose <group = 2> (x, w)", "float[8,3,2,2] w", Channels(4, 6, 2), (2, 2)),
        ("MatMul (x, w)", "float[8,8] w", None, ()),
    ],
)
def test_channels_of_a_group(
    operator: str, weight: str, sizes: Channels | None, window: tuple[int, ...]
) -> None:
    graph, label = single_node(operator, "float x", weight)
    assert convolution_channels(graph, graph.by_label[label]) == sizes
    assert kernel_shape(graph, graph.by_label[label]) == window


@pytest.mark.parametrize(
    ("operator", "inputs", "weight", "counted", "summed"),
    [
        ("MatMul (x, w)", "float[2,3,8] x", "float[8,5] w", 6, (8, 5)),
        ("MatMul (x, w)", "float[8] x", "float[8,5] w", 1, (8, 5)),
        ("MatMul (x, w)", "float[N,8] x", "float[8,5] w", None, (8, 5)),
        ("MatMul (x, w)", "float[N,1,8] x", "float[8,5] w", None, (8, 5)),
        ("MatMul (x, w)", "float[2,8] x", "float[8] w", 2, None),
        ("Gemm <transB = 1> (x, w)", "float[4,8] x", "float[5,8] w", 4, (8, 5)),
        ("Gemm <transA = 1> (x, w)", "float[8,4] x", "float[8,5] w", 4, (8, 5)),
        ("MatMul (x, w)", "float[2,8] x, float[8,N] w", "float z", None, None),
        ("Conv (x, w)", "float[1,8,4] x", "float[5,8,1] w", None, None),
    ],
)
def test_rows_and_columns_of_a_product(
    operator: str, inputs: str, weight: str, counted: int | None, summed: tuple[int, int] | None
) -> None:
    graph, label = single_node(operator, inputs, weight)
    assert (
        product_rows(graph, graph.by_label[label]),
        product_sizes(graph, graph.by_label[label]),
    ) == (counted, summed)


@pytest.mark.parametrize(("length", "expected"), [("6", 6), ("N", None)])
@pytest.mark.parametrize("between", [["t = Mul (s, k)"], [], ["u = Div (s, k)", "t = Add (u, m)"]])
def test_the_length_of_an_attention(length: str, expected: int | None, between: list[str]) -> None:
    scores = "t" if between else "s"
    nodes = f"[first] s = MatMul (q, h) {' '.join(between)} p = Softmax ({scores}) [second] y = MatMul (p, v)"
    graph = index(
        nodes,
        f"float[2,4,8] q, float[2,8,{length}] h, float[2,{length},8] v, float[2,4,{length}] m",
        "float[2,4,8] y",
    )
    assert [attention_length(graph, graph.by_label[name]) for name in ("first", "second")] == [
        expected,
        expected,
    ]


@pytest.mark.parametrize(
    "nodes",
    [
        "[it] y = MatMul (x, z)",
        "[it] s = MatMul (x, w) y = Softmax (s)",
        "[it] s = MatMul (x, z) t = Relu (s) y = Softmax (t)",
    ],
)
def test_a_product_without_an_attention_has_no_length(nodes: str) -> None:
    graph = index(nodes, "float[2,8] x, float[8,8] z")
    assert attention_length(graph, graph.by_label["it"]) is None


def test_a_layer_reads_the_graph_input_through_moves_alone() -> None:
    graph = index(
        "t = Transpose (x) u = Identity (t) [a] y = MatMul (u, w) r = Relu (x) [b] z = MatMul (r, w)"
    )
    assert [reads_graph_input(graph, graph.by_label[name]) for name in "ab"] == [True, False]


def test_every_pattern_answers_for_each_node_of_an_odd_graph() -> None:
    """Nodes without inputs, with empty slots and of other domains are none of them, and break nothing."""
    odd = [
        node("RandomNormal", [], "r", shape=[2, 4]), helper.make_node("Clip", ["x", "", "r0"], ["c"], name="clip"),
        helper.make_node("Mystery", ["c", ""], ["m"], name="mystery", domain="other"), node("Mul", ["m", "r"], "y", name="mul"),
    ]  # fmt: skip
    model = build(
        odd, {"x": [2, 4]}, {"y": [2, 4]}, {"r0": np.array(1, np.float32)}, domains={"other": 1}
    )
    graph = GraphIndex(qdq.load(model))
    tests = (
        can_commute_with_quantization,
        find_gate,
        is_channel_gate,
        convolution_channels,
        product_sizes,
        product_rows,
        attention_length,
    )
    assert not any(test(graph, n) for test, n in itertools.product(tests, graph.nodes))
    assert gelu_nodes(graph) == normalization_nodes(graph) == attention_masks(graph) == frozenset()


def test_an_input_that_is_left_out_is_no_constant_even_beside_a_constant_node_without_all_its_outputs() -> (
    None
):
    left_out = index(
        "[drop] v, = Dropout (w) [mean] m = ReduceMean (x, ) [flat] f = Flatten (m) [last] y = MatMul (f, v)",
        "float[1,8,1,1] x",
        "float[1,8] y",
    )
    left_out.source.model.graph.node[0].output.append("")
    graph = GraphIndex(left_out.source)
    assert graph.is_constant("v")
    assert not graph.is_constant("")
    assert qdq.plan(left_out.source.model).placements
