"""Applying a plan and taking it out again, on random small graphs: what must hold for every one of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qdq
from qdq.checking.checker import compare_with_plan
from qdq.data.feeds import open_feeds
from qdq.graph.bodies import node_labels
from qdq.graph.index import GraphIndex
from qdq.graph.source import canonical_bytes
from qdq.planning.decisions import Plan
from qdq.testing.error_bounds import output_bound
from tests.support.graphs import (
    OPERATORS,
    convolution,
    draw_graphs,
    identities,
    models,
    paired_edges,
    random_feed,
    renamed,
    run,
    shuffled,
)

slow = draw_graphs(60)
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def planned(model: onnx.ModelProto, plan: Plan) -> set[tuple[str, int]]:
    """Return the planned edges as (first output of their node, slot)."""
    outputs = dict(
        zip(node_labels(model.graph), (n.output[0] for n in model.graph.node), strict=True)
    )
    return {(outputs[p.edge.node], p.edge.slot) for p in plan.placements}


def shared(model: onnx.ModelProto, plan: Plan) -> set[frozenset[str]]:
    """Return the scale groups as sets."""
    return {frozenset(group.tensors) for group in plan.scale_groups}


def quantized(model: onnx.ModelProto, plan: Plan, method: str = "max") -> onnx.ModelProto:
    """Return the model with its plan carried out."""
    return qdq.apply(model, plan, qdq.calibrate(model, plan, "noise", method=method))


@slow
@given(models())
def test_the_strategy_makes_valid_models_that_onnx_runtime_runs(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert all(np.isfinite(output).all() for output in run(model, random_feed(model)))


@slow
@given(models())
def test_stripping_what_was_applied_gives_the_model_back_byte_for_byte(
    model: onnx.ModelProto,
) -> None:
    before = canonical_bytes(model)
    after = quantized(model, qdq.plan(model))
    assert canonical_bytes(qdq.strip(after)) == before
    assert canonical_bytes(model) == before


@slow
@given(models())
def test_every_planned_edge_and_no_other_gets_a_pair(model: onnx.ModelProto) -> None:
    plan = qdq.plan(model)
    after = quantized(model, plan)
    assert paired_edges(model, after) == planned(model, plan)


@slow
@given(models(), st.sampled_from(["max", "mse", "percentile:99"]))
def test_the_same_inputs_give_the_same_bytes_twice(model: onnx.ModelProto, method: str) -> None:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    first, second = (
        qdq.quantize(model, "noise", method=method),
        qdq.quantize(copy, "noise", method=method),
    )
    assert first.plan == second.plan
    assert first.scales == second.scales
    assert canonical_bytes(first.model) == canonical_bytes(second.model)


@slow
@given(models())
def test_the_result_is_valid_onnx_and_runs(model: onnx.ModelProto) -> None:
    after = quantized(model, qdq.plan(model))
    onnx.checker.check_model(after, full_check=True)
    feed = random_feed(model)
    for expected, got in zip(run(model, feed), run(after, feed), strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        assert np.isfinite(got).all()


@settings(slow, max_examples=25)
@given(models(most=6))
def test_outputs_differ_by_no_more_than_the_scales_allow(model: onnx.ModelProto) -> None:
    plan = qdq.plan(model)
    scales = qdq.calibrate(model, plan, "noise", method="max")
    index = GraphIndex(qdq.load(model))
    feed = open_feeds(index, "noise").first()
    bounds = output_bound(index, plan, scales, feed)
    for output, expected, got in zip(
        model.graph.output, run(model, feed), run(qdq.apply(model, plan, scales), feed), strict=True
    ):
        assert (np.abs(got - expected) <= bounds[output.name]).all()


@slow
@given(models())
def test_checking_the_result_finds_nothing_and_checking_the_float_model_finds_each_planned_edge(
    model: onnx.ModelProto,
) -> None:
    plan = qdq.plan(model)
    assert qdq.check(quantized(model, plan)) == ()
    assert {p.edge for p in compare_with_plan(model).missing} == {p.edge for p in plan.placements}
    assert [f.code for f in qdq.check(model)] == ["not-quantized"] * bool(plan.placements)


@slow
@given(models())
def test_a_weighted_node_gets_pairs_on_both_operands_or_on_none(model: onnx.ModelProto) -> None:
    edges = planned(model, qdq.plan(model))
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            assert ((node.output[0], 0) in edges) == ((node.output[0], 1) in edges)


@slow
@given(models(), st.integers(0, 99))
def test_the_order_of_nodes_does_not_change_the_plan(model: onnx.ModelProto, seed: int) -> None:
    other = shuffled(model, seed)
    plan, again = qdq.plan(model), qdq.plan(other)
    assert planned(other, again) == planned(model, plan)
    assert shared(other, again) == shared(model, plan)
    assert {(p.edge.tensor, p.quantizer) for p in again.placements} == {
        (p.edge.tensor, p.quantizer) for p in plan.placements
    }


@slow
@given(models(), st.integers(0, 99))
def test_the_names_of_nodes_and_tensors_do_not_change_the_plan(
    model: onnx.ModelProto, seed: int
) -> None:
    other, names = renamed(model, seed)
    plan, again = qdq.plan(model), qdq.plan(other)
    assert planned(other, again) == {(names[output], slot) for output, slot in planned(model, plan)}
    assert shared(other, again) == {
        frozenset(names[t] for t in group) for group in shared(model, plan)
    }


def test_names_of_tensors_that_only_the_list_of_types_has_change_too() -> None:
    model = convolution()
    model.graph.value_info.add(name="unused").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    other, names = renamed(model, 0)
    assert [value.name for value in other.graph.value_info] == [names["unused"]]
    assert len(qdq.plan(other).placements) == len(qdq.plan(model).placements)


@slow
@given(models(), st.data())
def test_a_node_left_in_float_keeps_all_its_inputs_and_no_other_node_is_half_quantized(
    model: onnx.ModelProto, data: st.DataObject
) -> None:
    labels = node_labels(model.graph)
    label = data.draw(st.sampled_from(labels))
    node = model.graph.node[labels.index(label)]
    plan = qdq.plan(model, leave_float=[label])
    edges = planned(model, plan)
    assert not [edge for edge in edges if edge[0] == node.output[0]]
    assert edges <= planned(model, qdq.plan(model))
    for other in model.graph.node:
        if other.op_type in WEIGHTED:
            assert ((other.output[0], 0) in edges) == ((other.output[0], 1) in edges)
    if plan.placements:
        after = quantized(model, plan)
        assert paired_edges(model, after) == edges
        assert qdq.check(after) == ()


@slow
@given(models())
def test_each_edge_of_a_plan_is_in_the_graph_and_decided_once(model: onnx.ModelProto) -> None:
    plan = qdq.plan(model)
    outputs = dict(
        zip(node_labels(model.graph), (n.output[0] for n in model.graph.node), strict=True)
    )
    decided = [item.edge for item in (*plan.placements, *plan.left_float)]
    assert len(decided) == len(set(decided))
    edges = identities(model)
    for edge in decided:
        assert edges[outputs[edge.node], edge.slot] == edge.tensor


@given(
    st.lists(st.sampled_from(["", "a", "b", "a#1", "a#2", "#0", "#1", "#2", "#1#1"]), max_size=5)
)
def test_labels_are_unique_and_a_name_that_no_other_node_has_is_its_node_s_label(
    names: list[str],
) -> None:
    graph = onnx.GraphProto(node=[onnx.NodeProto(name=name) for name in names])
    labels = node_labels(graph)
    assert len(set(labels)) == len(names)
    for name, label in zip(names, labels, strict=True):
        assert (label == name) == (bool(name) and names.count(name) == 1)


@pytest.mark.parametrize("op", sorted(set(OPERATORS)))
def test_the_strategy_reaches_every_operator(op: str) -> None:
    assert op.removesuffix("2") in {n.op_type for n in _generated_nodes()}


def _generated_nodes() -> list[onnx.NodeProto]:
    if not _NODES:
        settings(
            max_examples=150,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(given(models())(_collect))()
    return _NODES


def _collect(model: onnx.ModelProto) -> None:
    _NODES.extend(model.graph.node)


_NODES: list[onnx.NodeProto] = []
