"""Groups of pairs: each pair is in one, and to release a group is to leave its layers in float."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import assume, given

import qdq
from benchmarks.fuzz.graph_generator import generate_model
from qdq.errors import UsageError
from qdq.graph.loader import load
from qdq.planning.plan_request import PlanRequest, exact_globs
from qdq.planning.planner import plan_index, plan_source
from qdq.rules.rule_files import load_rules
from qdq.sensitivity.graph_blocks import find_blocks
from qdq.sensitivity.layer_groups import BLOCK, GROUPINGS, LAYER, TENSOR, find_layer_groups
from qdq.target import to_targets
from tests.support.calibrated_plans import without_placements
from tests.support.graphs import EVERYTHING, build, draw_graphs, models, node, noise

RULES = load_rules(["tensorrt"])
TARGETS = to_targets(["rtx:sm86"])


def residual() -> onnx.ModelProto:
    """Return Conv a, then Conv b whose result is added to a's, then Conv c."""
    nodes = [
        node("Conv", ["x", "wa"], "a", "conv_a"),
        node("Relu", ["a"], "r", "relu"),
        node("Conv", ["r", "wb"], "b", "conv_b"),
        node("Add", ["b", "r"], "s", "add"),
        node("Conv", ["s", "wc"], "y", "conv_c"),
    ]
    weights = {name: noise(4, 4, 1, 1, seed=i) for i, name in enumerate(("wa", "wb", "wc"))}
    return build(nodes, {"x": [1, 4, 4, 4]}, ["y"], weights)


def require_groups_release_what_planning_leaves(model: onnx.ModelProto) -> None:
    """Fail unless every pair is in a group, and a release is the plan with its owners in float."""
    index, plan = plan_source(load(model), PlanRequest(rules=RULES, targets=TARGETS))
    for by in GROUPINGS:
        groups = find_layer_groups(index, plan, by)
        covered = {item for group in groups for item in group.placements}
        assert covered == set(plan.placements)
        assert len({group.placements for group in groups}) == len(groups)
        for group in groups[:8]:
            request = PlanRequest(
                rules=RULES, targets=TARGETS, leave_float=exact_globs(group.owners)
            )
            released = plan_index(index, request)
            expected = {item.edge for item in without_placements(plan, group.placements)}
            assert {item.edge for item in released.placements} == expected, (by, group.name)


@draw_graphs(12)
@given(model=models(operators=EVERYTHING))
def test_a_release_is_the_plan_with_its_owners_in_float(model: onnx.ModelProto) -> None:
    assume(qdq.plan(model).placements)
    require_groups_release_what_planning_leaves(model)


@pytest.mark.parametrize("seed", range(1, 60, 3))
def test_a_release_of_generated_models_with_bodies_is_the_plan_too(seed: int) -> None:
    require_groups_release_what_planning_leaves(generate_model(seed))


def test_a_layer_goes_with_the_residual_that_needs_it() -> None:
    index, plan = plan_source(load(residual()), PlanRequest(rules=RULES, targets=TARGETS))
    groups = {group.name: group for group in find_layer_groups(index, plan)}
    assert {"conv_a", "conv_b", "conv_c"} <= set(groups)
    assert groups["conv_b"].owners == ("conv_b",)
    assert set(groups["conv_b"].nodes) == {"conv_b", "add"}
    assert set(groups["conv_a"].nodes) == {"conv_a"}


def test_a_tensor_goes_with_all_its_readers() -> None:
    index, plan = plan_source(load(residual()), PlanRequest(rules=RULES, targets=TARGETS))
    groups = {group.name: group for group in find_layer_groups(index, plan, TENSOR)}
    (name,) = [name for name in groups if "r" in name.split(" + ")]
    assert "conv_b" in groups[name].owners
    assert groups["x"].nodes == ("conv_a",)


def test_blocks_lie_between_tensors_that_everything_passes() -> None:
    index, plan = plan_source(load(residual()), PlanRequest(rules=RULES, targets=TARGETS))
    labels = list(index.by_label)
    assert list(find_blocks(index, labels)) == [["conv_a"], ["relu"], ["conv_b", "add"], ["conv_c"]]
    names = [group.name for group in find_layer_groups(index, plan, BLOCK)]
    assert names == ["conv_a", "conv_b .. add", "conv_c"]


def test_nodes_of_bodies_are_blocks_of_their_own() -> None:
    index, _ = plan_source(load(residual()), PlanRequest(rules=RULES, targets=TARGETS))
    assert list(find_blocks(index, ["loop.body.conv", "conv_a"])) == [
        ["conv_a"],
        ["loop.body.conv"],
    ]


def test_an_unknown_grouping_is_one_line() -> None:
    index, plan = plan_source(load(residual()), PlanRequest(rules=RULES, targets=TARGETS))
    assert find_layer_groups(index, plan, LAYER)
    with pytest.raises(UsageError, match=r"unknown groups 'row'\. Pass layer, tensor or block\."):
        find_layer_groups(index, plan, "row")
