"""The network of a page: precisions, blocks, links and places."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index
from qdq.reports.edge_decisions import read_plan_decisions
from qdq.reports.graph_blocks import fold_to_blocks
from qdq.reports.graph_layout import order_rows, rank_nodes
from qdq.reports.model_graphs import graph_model
from qdq.reports.page_graph import GraphContent, PageGraph, make_graph
from qdq.rules.rule_files import load_rules
from tests.support.body_models import branching
from tests.support.pages import chain_graph

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4] x) => (float[1,4] y) <float[4,4] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1}>
{
  [first] a = MatMul(x, w)
  [act] r = Relu(a)
  [second] b = MatMul(r, w)
  [soft] s = Softmax(b)
  [shape] n = Shape(s)
  [back] y = Reshape(s, n)
}
"""


def graph_of(model: onnx.ModelProto, **more: object) -> PageGraph:
    index = GraphIndex(load(model))
    plan = plan_index(index, PlanRequest(load_rules()))
    content = GraphContent(index, read_plan_decisions(plan, None), {}, **more)  # type: ignore[arg-type]
    graph = make_graph(content)
    assert graph is not None
    return graph


def precisions(graph: PageGraph) -> dict[str, str]:
    return {node.name: node.precision for node in graph.nodes}


def test_precisions_follow_pairs_and_tensors() -> None:
    expected = {
        "first": "INT8", "act": "FP32", "second": "INT8", "soft": "FP32", "shape": "other", "back": "FP32",
    }  # fmt: skip
    assert precisions(graph_of(parser.parse_model(NETWORK))) == expected


def test_a_cast_makes_the_float_part_fp16() -> None:
    graph = graph_of(parser.parse_model(NETWORK), float_type="fp16", kept_fp32=frozenset({"soft"}))
    assert precisions(graph)["act"] == "FP16"
    assert precisions(graph)["soft"] == "FP32"
    assert precisions(graph)["second"] == "INT8"


def test_decisions_are_at_the_inputs() -> None:
    graph = graph_of(parser.parse_model(NETWORK))
    by_name = {node.name: node for node in graph.nodes}
    data, weight = by_name["second"].inputs
    assert (data.slot, data.tensor, data.type, data.because) == (
        0,
        "r",
        "INT8",
        ("weighted-inputs",),
    )
    assert weight.pair.startswith("int8")
    assert by_name["second"].is_central
    assert not by_name["back"].is_central
    assert by_name["soft"].inputs[0].reason


def test_bodies_come_before_the_node_that_carries_them() -> None:
    names = [node.name for node in graph_of(branching()).nodes]
    assert names.index("if.then_branch/then_matmul") < names.index("if")
    assert names.index("if.else_branch/else_matmul") < names.index("if")


def test_a_model_that_is_no_qdq_model_has_no_network() -> None:
    assert graph_model(onnx.ModelProto()) is None


@pytest.mark.parametrize(
    "name", ["/stage{stage}/layer{layer}/{op}_{i}", "", "node_{i}", "m.{op}.{i}"]
)
def test_large_networks_fold_to_blocks(name: str) -> None:
    graph = chain_graph(3000, name)
    sizes = np.bincount([node.block for node in graph.nodes])
    assert len(sizes) == len(graph.blocks)
    assert 3000 / 48 <= len(graph.blocks) <= 3000 / 8
    assert sizes.min() >= 1
    assert sizes.max() <= 48
    assert len({block.name for block in graph.blocks}) == len(graph.blocks)


def test_blocks_have_the_names_of_their_modules() -> None:
    names = [f"/net/{part}/conv{i}/Conv" for part in ("stem", "head") for i in range(8)]
    assert [block.name for block in fold_to_blocks(names, names, [])] == ["net/stem", "net/head"]


def test_names_by_operator_are_no_modules() -> None:
    names = [f"{op}/{i}" for i in range(30) for op in ("Conv", "Relu")]
    blocks = fold_to_blocks(names, names, range(1, 60, 2))
    assert [block.positions for block in blocks] == [
        list(range(i, min(i + 8, 60))) for i in range(0, 60, 8)
    ]


def test_segments_end_where_one_tensor_is_left() -> None:
    titles = [f"#{i}" for i in range(20)]
    blocks = fold_to_blocks(titles, titles, [4, 9, 14])
    assert [block.name for block in blocks] == ["#0 … #4", "#5 … #9", "#10 … #14", "#15 … #19"]


LINKS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=60)


@given(LINKS)
def test_ranks_grow_along_links(links: list[tuple[int, int]]) -> None:
    ranks = rank_nodes(20, links)
    rows = order_rows(ranks, links)
    for start, end in links:
        assert start >= end or ranks[start] < ranks[end]
    assert len(set(zip(ranks, rows, strict=True))) == 20
    assert min(ranks) >= 0


@given(
    st.lists(
        st.sampled_from(["/a/x", "/a/b/x", "/c/x", "x", "/c/d/e/x"]), min_size=1, max_size=120
    ),
    st.sets(st.integers(0, 119)),
)
def test_every_node_is_in_one_block(names: list[str], cuts: set[int]) -> None:
    blocks = fold_to_blocks(names, names, cuts)
    positions = [position for block in blocks for position in block.positions]
    assert sorted(positions) == list(range(len(names)))
    assert all(block.positions == sorted(block.positions) for block in blocks)
