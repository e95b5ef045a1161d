"""Ranges by the measured output error: what is changed, what stays, and what it costs."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import onnx
import pytest

from qdq.errors import PlanError
from qdq.recovery.range_candidates import list_candidates, list_shared_pairs
from qdq.recovery.range_refinement import (
    RangeRefinements,
    apply_refinements,
    refine_ranges,
)
from qdq.recovery.refined_range import is_significant
from tests.support.calibrated import CalibratedModel
from tests.support.graphs import Array, build, convolution, node, noise

TOKENS, WIDTH = 64, 16
BUDGET = 400


def saturating() -> onnx.ModelProto:
    """Return MatMul and Tanh, which hides the clipping of enormous values."""
    return build(
        [
            node("MatMul", ["x", "w"], "m"),
            node("Tanh", ["m"], "t"),
            node("MatMul", ["t", "v"], "y"),
        ],
        {"x": [TOKENS, WIDTH]},
        ["y"],
        {"w": noise(WIDTH, WIDTH, seed=1) / 4, "v": noise(WIDTH, WIDTH, seed=2)},
    )


def with_outlier(seed: int) -> dict[str, Array]:
    """Return tokens of noise, of which one is enormous."""
    tokens = noise(TOKENS, WIDTH, seed=seed)
    tokens[seed % TOKENS] *= 300
    return {"x": tokens}


class Case(CalibratedModel):
    def refine(self, budget: int = BUDGET, samples: int = 8) -> RangeRefinements:
        return refine_ranges(
            self.index, self.plan, self.scales, self.ranges, self.feeds[:samples], budget
        )


@pytest.fixture(scope="module")
def outlier() -> Case:
    return Case(saturating(), [with_outlier(seed) for seed in range(8)])


def test_a_range_for_values_that_change_nothing_is_reduced(outlier: Case) -> None:
    refinements = outlier.refine()

    (refined,) = [item for item in refinements.ranges if "x" in item.tensors]
    assert refined.new_amax < refined.old_amax
    assert refined.gain > 3
    assert refinements.snr_after > refinements.snr_before + 3


def test_samples_that_were_not_seen_gain_too(outlier: Case) -> None:
    unseen = [with_outlier(seed) for seed in range(20, 24)]
    refined = apply_refinements(outlier.scales, outlier.refine())

    assert outlier.measure(refined, unseen) > outlier.measure(outlier.scales, unseen) + 3


def test_the_refined_scale_is_the_new_range(outlier: Case) -> None:
    refinements = outlier.refine()
    refined = apply_refinements(outlier.scales, refinements)
    changed = {tensor: item for item in refinements.ranges for tensor in item.tensors}

    assert refined.plan == outlier.scales.plan
    for before, after in zip(outlier.scales.by_pair, refined.by_pair, strict=True):
        item = changed.get(after.tensor)
        if item is None or not after.quantizer.calibrated:
            assert after == before
        else:
            assert after.scales[0] == pytest.approx(item.new_amax / 127)


def test_a_tensor_far_beyond_its_new_range_is_listed_as_an_outlier(outlier: Case) -> None:
    refined = apply_refinements(outlier.scales, outlier.refine())

    (listed,) = [item for item in refined.outliers if item.tensor == "x"]
    assert listed.amax >= 8 * listed.clipped_at


def test_the_search_keeps_its_budget(outlier: Case) -> None:
    for budget in (40, 60, 100):
        assert outlier.refine(budget).runs <= budget


@pytest.mark.parametrize(("budget", "samples"), [(BUDGET, 3), (20, 8), (0, 8)])
def test_too_few_samples_or_runs_change_nothing(outlier: Case, budget: int, samples: int) -> None:
    refinements = outlier.refine(budget, samples)

    assert refinements.ranges == ()
    assert refinements.runs == 0
    assert math.isnan(refinements.snr_before)
    assert apply_refinements(outlier.scales, refinements) == outlier.scales


def test_a_given_range_stays() -> None:
    case = Case(saturating(), [with_outlier(seed) for seed in range(8)], x=1000.0)

    assert all("x" not in item.tensors for item in case.refine().ranges)


def test_ranges_that_suit_noise_lose_nothing() -> None:
    feeds = [{"x": noise(1, 3, 6, 6, seed=seed)} for seed in range(8)]
    case = Case(convolution(), feeds)
    unseen = [{"x": noise(1, 3, 6, 6, seed=seed)} for seed in range(50, 80)]

    refined = apply_refinements(case.scales, case.refine())

    assert case.measure(refined, unseen) > case.measure(case.scales, unseen) - 0.5


def test_a_gain_must_exceed_what_chance_explains() -> None:
    before = np.full((4, 1), 0.1)

    assert is_significant(before, before / 2, log_variance=0.01)
    assert not is_significant(before, before / 10, log_variance=5.0)
    assert not is_significant(before, before * [[0.01], [3], [0.1], [2]], log_variance=0.01)
    assert not is_significant(before, before, log_variance=0.01)


def test_the_members_of_a_scale_group_keep_one_scale() -> None:
    model = build(
        [
            node("Conv", ["x", "w"], "a"),
            node("Conv", ["z", "w"], "b"),
            node("Concat", ["a", "b"], "c", axis=1),
            node("Conv", ["c", "v"], "t"),
            node("Tanh", ["t"], "y"),
        ],
        {"x": [1, 4, 8, 8], "z": [1, 4, 8, 8]},
        ["y"],
        {"w": noise(4, 4, 1, 1, seed=1), "v": noise(4, 8, 1, 1, seed=2)},
    )
    feeds = []
    for seed in range(8):
        x, z = noise(1, 4, 8, 8, seed=seed), noise(1, 4, 8, 8, seed=seed + 100)
        x[:, :, 0, 0] *= 300
        feeds.append({"x": x, "z": z})
    case = Case(model, feeds)

    refinements = case.refine()
    refined = apply_refinements(case.scales, refinements)

    assert refinements.ranges
    scales = {pair.tensor: pair.scales for pair in refined.by_pair}
    for group in case.plan.scale_groups:
        assert len({scales[tensor] for tensor in group.tensors if tensor in scales}) == 1
    for record in refined.shared:
        assert record.amax == pytest.approx(scales[record.tensor][0] * 127)


def test_candidates_are_apart_and_within_the_observed_values(outlier: Case) -> None:
    by_tensor = {item.tensor: item for item in outlier.ranges.by_tensor}
    for pairs in list_shared_pairs(outlier.plan, outlier.scales):
        candidates = [*list_candidates(pairs, by_tensor), pairs.amax]
        ordered = np.sort(candidates)

        assert len(candidates) > 3
        assert (ordered[1:] / ordered[:-1] > 1.07).all()
        assert ordered[0] > 0
        largest = max(by_tensor[tensor].amax for tensor in pairs.tensors)
        assert max(candidates) <= max(largest, pairs.amax)


def test_refinements_of_another_plan_are_refused(outlier: Case) -> None:
    other = msgspec.structs.replace(outlier.refine(), plan="another")

    with pytest.raises(PlanError, match="of another plan"):
        apply_refinements(outlier.scales, other)
