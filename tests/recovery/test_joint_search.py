"""Ranges with all activations quantized: bad ones are dropped, and small changes kept if they help."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from qdq.recovery.joint_search import JointSearch
from qdq.recovery.range_candidates import SharedPairs, list_shared_pairs
from qdq.recovery.refined_range import RefinedRange
from qdq.recovery.scaled_session import ErrorMeter, ScaledSession
from tests.support.calibrated import CalibratedModel
from tests.support.graphs import build, node, noise


def background() -> CalibratedModel:
    """Return a network over pictures of one colour, whose rounding error does not average out."""
    model = build(
        [
            node("Conv", ["x", "w"], "a"),
            node("Relu", ["a"], "r"),
            node("Conv", ["r", "v"], "c"),
            node("GlobalAveragePool", ["c"], "y"),
        ],
        {"x": [1, 4, 16, 16]},
        ["y"],
        {"w": noise(8, 4, 1, 1, seed=1), "v": noise(16, 8, 1, 1, seed=2)},
    )
    feeds = []
    for seed in range(8):
        picture = np.full((1, 4, 16, 16), 0.531, np.float32)
        picture[:, :, :2, :2] = noise(1, 4, 2, 2, seed=seed) * 3
        feeds.append({"x": picture})
    return CalibratedModel(model, feeds)


class Search:
    """A search from ranges of which that of the Relu rounds the background badly."""

    def __init__(self, most_runs: int = 1000) -> None:
        self.model = background()
        session = ScaledSession(self.model.index, self.model.plan, self.model.scales)
        self.meter = ErrorMeter(session, self.model.feeds)
        self.pairs: list[SharedPairs] = []
        scales = dict(session.scales)
        for pairs in list_shared_pairs(self.model.plan, self.model.scales):
            factor = 1.09 if "r" in pairs.tensors else 1.0
            self.pairs.append(msgspec.structs.replace(pairs, scale=pairs.scale * factor))
            scales.update(self.pairs[-1].scales_at(self.pairs[-1].amax))
        self.search = JointSearch(self.meter, self.model.ranges, scales, most_runs)

    def refined(self, pairs: SharedPairs, factor: float) -> RefinedRange:
        return RefinedRange(
            pairs.tensors, pairs.dtype, pairs.amax, pairs.amax * factor, 0, 1, (1.0,)
        )


def test_a_range_that_makes_the_whole_worse_is_dropped_and_the_others_stay() -> None:
    case = Search()
    image, relu = case.pairs
    case.search.refine(relu)
    good_range = case.search.refined[relu.keys]
    fresh = Search()
    bad_range = fresh.refined(image, 0.01)

    fresh.search.add({bad_range: image, good_range: relu})

    assert fresh.search.refined == {relu.keys: good_range}
    assert fresh.search.snr_after == pytest.approx(case.search.snr_after)


def test_small_changes_never_reduce_the_ratio_that_is_measured() -> None:
    case = Search()
    ratios = [case.search.snr_before]
    for pairs in case.pairs:
        case.search.refine(pairs)
        ratios.append(case.search.snr_after)

    assert ratios == sorted(ratios)
    assert ratios[-1] > ratios[0] + 1
    assert all(item.together for item in case.search.refined.values())


def test_without_runs_nothing_changes() -> None:
    case = Search(most_runs=20)
    for pairs in case.pairs:
        case.search.refine(pairs)
        case.search.add({case.refined(pairs, 0.9): pairs})

    assert case.search.refined == {}
    assert case.meter.runs <= 20
