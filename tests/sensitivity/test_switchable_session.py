"""One session with pairs that are switched: against the float model, and the rewritten files."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto

import qdq
from benchmarks.fuzz.graph_generator import generate_model
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.planning.decisions import Placement
from qdq.rewriting.inserter import apply_plan
from qdq.runtime.session import exact_options, open_session
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators
from qdq.sensitivity import switchable_session
from qdq.sensitivity.plan_sensitivity import CalibratedPlan
from qdq.sensitivity.switchable_session import SwitchableSession
from tests.graph.test_external_constants import ExternalFile
from tests.observers.test_uncomputable_tensors import at_the_end
from tests.support.body_models import branching
from tests.support.body_models import samples as body_samples
from tests.support.calibrated_plans import Feeds, calibrate_plan, draw_feeds
from tests.support.graphs import (
    EVERYTHING,
    Array,
    build,
    convolution,
    draw_graphs,
    models,
    node,
    noise,
)


def open_switchable(calibrated: CalibratedPlan, *more_outputs: str) -> SwitchableSession:
    """Return the session of a plan that returns the model's outputs, and some other tensors."""
    outputs = [*calibrated.index.outputs, *more_outputs]
    return SwitchableSession(calibrated.index, calibrated.plan, calibrated.scales, outputs)


def run_file(
    calibrated: CalibratedPlan, placements: list[Placement], feed: dict[str, Array]
) -> list[Array]:
    """Return the outputs of the rewritten model that has some placements."""
    plan = msgspec.structs.replace(calibrated.plan, placements=tuple(placements), scale_groups=())
    scales = msgspec.structs.replace(calibrated.scales, plan=plan.key)
    model = apply_plan(calibrated.index, plan, scales)
    source = Source(calibrated.index.source.path, model, "", notes=("rewritten",))
    session = open_session(GraphIndex(source), [], exact_options())
    outputs: list[Array] = session.run(list(calibrated.index.outputs), feed)
    return outputs


def require_close(actual: list[Array], expected: list[Array], steps: float = 0.02) -> None:
    """Fail unless outputs agree but for few roundings that fall on the other side."""
    assert len(actual) == len(expected)
    for values, wanted in zip(actual, expected, strict=True):
        assert values.shape == wanted.shape
        assert values.dtype == wanted.dtype
        if wanted.dtype.kind != "f" or not wanted.size:
            continue
        exact, approximate = wanted.astype(np.float64), values.astype(np.float64)
        size = np.sqrt(np.mean(exact**2)) + 1e-12
        assert np.sqrt(np.mean((approximate - exact) ** 2)) <= steps * size


def draw_part(plan: qdq.Plan, seed: int) -> list[Placement]:
    """Return about half of the placements."""
    chooser = random.Random(seed)
    return [placement for placement in plan.placements if chooser.random() < 0.5]


def compare_with_files(
    model: onnx.ModelProto | Path, feeds: Feeds, seed: int = 0, **options: object
) -> CalibratedPlan:
    """Fail unless a session computes what the files with no, all and some of the pairs do."""
    calibrated = calibrate_plan(model, feeds, **options)  # type: ignore[arg-type]
    session = open_switchable(calibrated)
    for number, feed in enumerate(feeds):
        for part in ([], list(calibrated.plan.placements), draw_part(calibrated.plan, seed)):
            expected = run_file(calibrated, part, feed)
            require_close(session.run(feed, part), expected)
            first = session.run(feed, part, number)
            require_close(first, expected)
            for again, before in zip(session.run(feed, part, number), first, strict=True):
                assert np.array_equal(again, before, equal_nan=True)
    return calibrated


@draw_graphs(12)
@given(model=models(operators=EVERYTHING), seed=st.integers(0, 99))
def test_any_part_of_the_pairs_computes_what_the_file_with_them_does(
    model: onnx.ModelProto, seed: int
) -> None:
    index = GraphIndex(qdq.load(model))
    assume(qdq.plan(index.source).placements)
    compare_with_files(model, draw_feeds(model, 1), seed)


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_generated_models_with_bodies_fp16_and_functions(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchable_session, "_LEAST_NODES", 1)
    model = generate_model(seed)
    if not qdq.plan(model).placements:
        return
    compare_with_files(model, draw_feeds(model, 2), seed)


def test_all_off_is_the_float_model_to_the_last_bit_with_kept_tensors() -> None:
    model = convolution()
    feed = draw_feeds(model)[0]
    session = open_switchable(calibrate_plan(model, [feed]))
    assert np.array_equal(session.run(feed, [], 0)[0], session.run(feed, [], 0)[0])
    assert np.array_equal(session.run(feed, [], 0)[0], session.run(feed, [])[0])


def test_bodies_are_switched_too() -> None:
    model = branching()
    calibrated = compare_with_files(model, body_samples(model))
    assert {placement.edge.graph for placement in calibrated.plan.placements} > {""}


def test_a_weight_that_two_nodes_share_is_switched_for_each() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Relu", ["a"], "r"),
        node("MatMul", ["r", "w"], "y"),
    ]
    model = build(nodes, {"x": [2, 4]}, ["y"], {"w": noise(4, 4, seed=5)})
    compare_with_files(model, draw_feeds(model))
    feeds = draw_feeds(model)
    calibrated = calibrate_plan(model, feeds)
    session = open_switchable(calibrated)
    weights = [item for item in calibrated.plan.placements if item.edge.tensor == "w"]
    results = [session.run(feeds[0], [item])[0] for item in weights]
    assert len(results) == 2
    assert not np.array_equal(results[0], results[1])


def test_a_tensor_that_a_node_reads_twice_is_switched_for_each_input() -> None:
    model = build([node("Relu", ["x"], "r"), node("MatMul", ["r", "r"], "y")], {"x": [4, 4]}, ["y"])
    feeds = draw_feeds(model)
    calibrated = compare_with_files(model, feeds)
    session = open_switchable(calibrated)
    first, second = calibrated.plan.placements
    require_close(session.run(feeds[0], [first]), run_file(calibrated, [first], feeds[0]), 1e-5)
    assert not np.array_equal(session.run(feeds[0], [first])[0], session.run(feeds[0], [second])[0])


def test_an_output_that_is_read_too_and_an_input_and_a_constant_as_outputs() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Relu", ["a"], "r"),
        node("MatMul", ["r", "v"], "y"),
    ]
    model = build(nodes, {"x": [2, 4]}, ["r", "y"], {"w": noise(4, 4), "v": noise(4, 4, seed=1)})
    feeds = draw_feeds(model)
    calibrated = compare_with_files(model, feeds)
    results = open_switchable(calibrated, "x", "w", "y").run(
        feeds[0], calibrated.plan.placements, 0
    )
    assert np.array_equal(results[2], feeds[0]["x"])
    assert np.array_equal(results[3], noise(4, 4))
    assert np.array_equal(results[4], results[1])


def test_weights_that_constants_hold_are_rounded() -> None:
    weight = onnx.numpy_helper.from_array(noise(4, 4), "value")
    nodes = [
        node("Constant", [], "w", value=weight),
        node("Transpose", ["w"], "t"),
        node("MatMul", ["x", "t"], "y"),
    ]
    model = build(nodes, {"x": [2, 4]}, {"y": [2, 4]})
    compare_with_files(model, draw_feeds(model))


def test_fp8_pairs_are_switched() -> None:
    model = convolution(opset=19)
    calibrated = compare_with_files(
        model, draw_feeds(model), rules=["tensorrt-fp8"], target="rtx:sm89"
    )
    assert {str(item.quantizer.element.code) for item in calibrated.plan.placements} == {
        str(TensorProto.FLOAT8E4M3FN)
    }


def test_external_data_is_found(tmp_path: Path) -> None:
    file = ExternalFile(tmp_path)
    model = build([node("MatMul", ["x", "w"], "y")], {"x": [2, 4]}, {"y": [2, 4]})
    model.graph.initializer.append(file.store("w", noise(4, 4)))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    compare_with_files(path, draw_feeds(model))


@pytest.mark.parametrize("operator", ["Nms", "EfficientNMS_TRT"])
def test_what_a_plugin_computes_is_left_out(operator: str) -> None:
    model = at_the_end(operator)
    feeds = draw_feeds(model)
    calibrated = calibrate_plan(model, feeds)
    unknown = find_unknown_operators(calibrated.index.source.model, [])
    outputs = find_computed_outputs(calibrated.index, unknown).names
    session = SwitchableSession(calibrated.index, calibrated.plan, calibrated.scales, outputs)
    all_off = session.run(feeds[0], [], 0)
    all_on = session.run(feeds[0], calibrated.plan.placements, 0)
    assert len(all_on) == 1
    assert not np.array_equal(all_off[0], all_on[0])


def test_a_placement_of_another_plan_changes_nothing() -> None:
    model = convolution()
    feeds = draw_feeds(model)
    calibrated = calibrate_plan(model, feeds)
    other = calibrate_plan(branching(), body_samples(branching())).plan.placements
    session = open_switchable(calibrated)
    assert np.array_equal(session.run(feeds[0], other)[0], session.run(feeds[0], [])[0])


def test_a_sample_of_a_wrong_shape_is_one_line() -> None:
    model = convolution()
    session = open_switchable(calibrate_plan(model, draw_feeds(model)))
    with pytest.raises(
        DataError, match=r"tested: ONNX Runtime failed on a sample: .*Check the shapes"
    ):
        session.run({"x": noise(1, 3, 1, 1)}, [])


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_kept_tensors_change_no_result(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every combination of parts, in an order in which states of others lie there."""
    monkeypatch.setattr(switchable_session, "_LEAST_NODES", 1)
    monkeypatch.setattr(switchable_session, "_MOST_KEPT_BYTES", limit)
    nodes = []
    weights = {}
    for i in range(6):
        weights[f"w{i}"] = noise(4, 4, seed=i)
        nodes += [
            node("MatMul", [f"r{i}" if i else "x", f"w{i}"], f"a{i}"),
            node("Relu", [f"a{i}"], f"r{i + 1}"),
        ]
    model = build(nodes, {"x": [2, 4]}, ["r2", "r6"], weights)
    feeds = draw_feeds(model)
    calibrated = calibrate_plan(model, feeds)
    session = open_switchable(calibrated)
    placements = calibrated.plan.placements
    parts = [draw_part(calibrated.plan, seed) for seed in range(6)]
    parts += [list(placements[:i]) for i in range(len(placements) + 1)]
    parts += [list(placements[i:]) for i in range(len(placements))]
    for part in parts:
        for number, feed in enumerate(feeds):
            for kept, fresh in zip(
                session.run(feed, part, number), session.run(feed, part), strict=True
            ):
                assert np.array_equal(kept, fresh)
