"""One session for all scales: it computes what a model with these scales computes."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto

import qdq
from qdq.calibration.scales import Scales
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.planning.decisions import Plan
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.recovery.scaled_session import ErrorMeter, PairKey, ScaledSession, to_decibels
from qdq.rewriting.inserter import insert_pairs
from tests.support.body_models import branching
from tests.support.graphs import Array, build, convolution, node, noise, random_feed, run

MODELS = {"convolution": convolution(), "bodies": branching()}


class Case:
    """A model with its plan and scales, and the session."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        feeds = [random_feed(model, seed) for seed in range(3)]
        for feed in feeds:
            if "c" in feed:
                feed["c"] = np.array(True)
        conditions = [{**feed, "c": np.array(False)} for feed in feeds if "c" in feed]
        self.feeds = [*feeds, *conditions]
        self.plan: Plan = qdq.plan(model)
        self.scales: Scales = qdq.calibrate(model, self.plan, self.feeds)
        self.index = GraphIndex(source_at_plan_opset(load(model), self.plan))
        self.session = ScaledSession(self.index, self.plan, self.scales)

    def compute(self, scales: dict[PairKey, float], feed: dict[str, Array]) -> list[Array]:
        """Return the outputs of the model with these pairs and its weights' written into it."""
        placements = [
            item
            for item in self.plan.placements
            if not item.quantizer.calibrated
            or (item.edge.qualified_tensor, item.quantizer) in scales
        ]
        by_pair = []
        for pair in self.scales.by_pair:
            scale = scales.get((pair.tensor, pair.quantizer))
            by_pair.append(
                pair if scale is None else msgspec.structs.replace(pair, scales=(scale,))
            )
        plan = msgspec.structs.replace(self.plan, placements=tuple(placements))
        own = msgspec.structs.replace(self.scales, by_pair=tuple(by_pair))
        return run(insert_pairs(self.index, plan, own), feed)


@pytest.fixture(scope="module", params=MODELS, ids=list(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(MODELS[request.param])


def test_all_pairs_off_is_the_model_with_quantized_weights(case: Case) -> None:
    for feed in case.feeds:
        (actual,) = case.session.run(feed, {})

        np.testing.assert_allclose(actual, case.compute({}, feed)[0], 1e-4, 1e-4)
        assert not np.allclose(actual, run(case.model, feed)[0], 1e-4, 1e-4)


def test_all_pairs_on_is_the_model_with_these_pairs(case: Case) -> None:
    for feed in case.feeds:
        (actual,) = case.session.run(feed, case.session.scales)

        np.testing.assert_allclose(actual, case.compute(case.session.scales, feed)[0], 1e-4, 1e-4)


def test_a_pair_alone_has_the_scale_of_the_run(case: Case) -> None:
    feed = case.feeds[0]
    for key in case.session.pairs:
        scales = {key: case.session.scales[key] * 20}
        (actual,) = case.session.run(feed, scales)

        np.testing.assert_allclose(actual, case.compute(scales, feed)[0], 1e-4, 1e-4)


def test_only_activations_have_scales(case: Case) -> None:
    assert len(case.session.pairs) >= 2
    assert all(quantizer.calibrated for _, quantizer in case.session.pairs)


def test_half_precision_has_scales_of_its_type() -> None:
    half = np.float16
    model = build(
        [
            node("MatMul", ["x", "w"], "m"),
            node("Relu", ["m"], "r"),
            node("MatMul", ["r", "w"], "y"),
        ],
        {"x": [8, 16]},
        ["y"],
        {"w": noise(16, 16, dtype=half)},
        dtype=TensorProto.FLOAT16,
    )
    case = Case(model)

    (actual,) = case.session.run(case.feeds[0], case.session.scales)

    expected = run(model, case.feeds[0])[0].astype(np.float32)
    assert 0 < np.abs(actual.astype(np.float32) - expected).max() < 0.1 * np.abs(expected).max()


def test_the_noise_is_the_energy_of_the_error_over_that_of_the_output() -> None:
    case = Case(convolution())
    meter = ErrorMeter(case.session, case.feeds)

    noise_of_all = meter.measure(case.session.scales, range(3))

    outputs = np.array([case.compute({}, feed)[0] for feed in case.feeds])
    changed = np.array([case.compute(case.session.scales, feed)[0] for feed in case.feeds])
    expected = 10 * np.log10((outputs**2).sum() / ((changed - outputs) ** 2).sum())
    assert noise_of_all.shape == (3, 1)
    assert to_decibels(noise_of_all) == pytest.approx(expected, abs=0.1)
    assert meter.runs == 6


def test_a_model_without_an_error_has_a_finite_ratio() -> None:
    case = Case(convolution())
    meter = ErrorMeter(case.session, case.feeds)

    assert to_decibels(meter.measure({}, range(3))) == pytest.approx(150.0)


@pytest.mark.parametrize(("values", "expected"), [(2, 4.93), (3, 1.645), (101, 0.0202)])
def test_the_variance_of_a_sample_is_that_of_chi_squared(values: int, expected: float) -> None:
    """The expected variances are the trigamma function of half the degrees of freedom."""
    model = build([node("MatMul", ["x", "w"], "y")], {"x": [1, 8]}, ["y"], {"w": noise(8, values)})
    case = Case(model)

    assert ErrorMeter(case.session, case.feeds).log_variance == pytest.approx(expected, rel=0.1)
