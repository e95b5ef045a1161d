"""The search for what to leave in float, against every subset of the groups of small networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from qdq.graph.index import Edge
from qdq.planning.decisions import Placement
from qdq.quantizer import Quantizer
from qdq.sensitivity.float_search import (
    Candidate,
    Pairs,
    SearchLimits,
    SearchResult,
    release_first,
    search_float_groups,
)
from qdq.sensitivity.layer_groups import LayerGroup
from qdq.sensitivity.output_noise import to_decibels
from qdq.sensitivity.plan_sensitivity import PlanSensitivity
from tests.support.calibrated_plans import calibrate_plan, draw_feeds, read_samples
from tests.support.graphs import Array, build, node

GROUPS = 12
Released = tuple[int, ...]


def make_group(number: int) -> LayerGroup:
    """Return a group of one pair."""
    name = f"layer_{number:02}"
    placement = Placement(
        Edge("", name, 0, f"tensor_{number}"), Quantizer("int8-activation", "int8"), ("rule",)
    )
    return LayerGroup(name, (name,), (name,), (placement,))


class LossTable:
    """A network of groups whose losses add up, with some that cancel or amplify each other."""

    def __init__(self, seed: int, interaction: float) -> None:
        rng = np.random.default_rng(seed)
        self.alone = 10.0 ** rng.uniform(-5, -3, GROUPS)
        self.alone[rng.choice(GROUPS, 3, replace=False)] = 10.0 ** rng.uniform(-2, -1, 3)
        work = rng.uniform(0.2, 1.0, GROUPS)
        self.work = work / work.sum()
        errors = rng.standard_normal((GROUPS, 200)) * np.sqrt(self.alone / 200)[:, None]
        shared = rng.standard_normal(200) * np.sqrt(self.alone / 200)[:, None]
        self.errors = np.sqrt(1 - interaction) * errors + np.sqrt(interaction) * shared
        self.groups = [make_group(number) for number in range(GROUPS)]
        self.full: Pairs = frozenset(p for group in self.groups for p in group.placements)
        self.measured: list[Pairs] = []

    def loss_of(self, quantized: Sequence[int]) -> float:
        """Return the energy of the errors of some groups together."""
        total = self.errors[list(quantized)].sum(axis=0)
        return float(total @ total)

    def measure(self, parts: Sequence[Pairs]) -> list[float]:
        """Return the losses, as a search asks for them."""
        losses: list[float] = []
        for part in parts:
            self.measured.append(part)
            quantized = [i for i, group in enumerate(self.groups) if group.placements[0] in part]
            losses.append(self.loss_of(quantized))
        return losses

    def candidates(self) -> list[Candidate]:
        """Return the groups with the loss of each alone."""
        return [
            Candidate(group, float(self.work[i]), self.loss_of([i]))
            for i, group in enumerate(self.groups)
        ]

    def find_optimum(self, target: float) -> float:
        """Return the least work whose release reaches a loss, over every subset."""
        everything = range(GROUPS)
        best = 1.0
        for count in range(GROUPS + 1):
            for released in itertools.combinations(everything, count):
                work = float(self.work[list(released)].sum())
                rest = [i for i in everything if i not in released]
                if work < best and self.loss_of(rest) <= target:
                    best = work
        return best


@pytest.mark.parametrize("interaction", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_release_of_all_subsets_is_found(seed: int, interaction: float) -> None:
    table = LossTable(seed, interaction)
    full_loss = table.loss_of(range(GROUPS))
    for gain_db in (3, 10, 20):
        target = full_loss / 10 ** (gain_db / 10)
        limits = SearchLimits(loss=target)
        result = search_float_groups(table.candidates(), table.full, table.measure, limits)
        assert result.loss <= target
        assert result.work == pytest.approx(table.find_optimum(target), abs=1e-9)
    assert len(set(table.measured)) < 2**GROUPS / 4


def planted(seed: int) -> PlanSensitivity:
    """Return a network of 12 layers of other sizes each, three of them with planted outliers.

    One column of their weights is so large that INT8 leaves little of the others: it has one scale
    per column, and the values that they read have a channel that is as large.
    """
    rng = np.random.default_rng(seed)
    bad = set(rng.choice(np.arange(1, GROUPS - 1), 3, replace=False).tolist())
    sizes = [8, *rng.integers(6, 20, GROUPS - 1).tolist(), 4]
    weights: dict[str, Array] = {}
    nodes = []
    for i, (size, next_size) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((size, next_size)) / np.sqrt(size)
        if i in bad:
            weight[0] /= 50
        if i + 1 in bad:
            weight[:, 0] *= 50
        weights[f"w{i}"] = weight.astype(np.float32)
        nodes.append(node("MatMul", [f"r{i}" if i else "x", f"w{i}"], f"a{i}", f"layer_{i}"))
        nodes.append(node("LeakyRelu", [f"a{i}"], f"r{i + 1}", alpha=0.3))
    model = build(nodes, {"x": [128, 8]}, [f"r{GROUPS}"], weights)
    feeds = draw_feeds(model, 1)
    calibrated = calibrate_plan(model, feeds)
    return PlanSensitivity(calibrated, read_samples(calibrated, feeds))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_optimum_of_every_subset_of_a_network_is_found(seed: int) -> None:
    """All 4096 subsets of 12 layers are measured in ONNX Runtime."""
    sensitivity = planted(seed)
    candidates = sensitivity.measure_alone(sensitivity.groups)
    assert len(candidates) == GROUPS
    subsets = list(itertools.product([False, True], repeat=GROUPS))
    parts = []
    for kept in subsets:
        chosen = itertools.compress(candidates, kept)
        parts.append(frozenset(p for candidate in chosen for p in candidate.pairs))
    losses = sensitivity.measurement.measure_all(parts)
    full_db = to_decibels(sensitivity.measurement.measure(sensitivity.full))
    for gain_db in (2, 5, 7, 10, 15):
        target = 10 ** (-(full_db + gain_db) / 10)
        works = [
            sum(
                candidate.work
                for candidate, is_kept in zip(candidates, kept, strict=True)
                if not is_kept
            )
            for kept, loss in zip(subsets, losses, strict=True)
            if loss <= target
        ]
        result = search_float_groups(
            candidates,
            sensitivity.full,
            sensitivity.measurement.measure_all,
            SearchLimits(loss=target),
        )
        assert result.loss <= target
        assert result.work == pytest.approx(min(works), abs=1e-9)


def search(
    candidates: Sequence[Candidate], losses: dict[Released, float], **limits: float
) -> SearchResult:
    """Return the search over a table of the losses by the released groups."""
    full = frozenset(p for candidate in candidates for p in candidate.pairs)

    def measure(parts: Sequence[Pairs]) -> list[float]:
        results = []
        for part in parts:
            released = tuple(i for i, item in enumerate(candidates) if not item.pairs <= part)
            results.append(losses[released])
        return results

    return search_float_groups(candidates, full, measure, SearchLimits(**limits))  # type: ignore[arg-type]


def three(*alone: float) -> list[Candidate]:
    """Return three groups of a tenth of the work each."""
    return [Candidate(make_group(i), 0.1, loss) for i, loss in enumerate(alone)]


#: Two groups whose errors cancel: to release the first alone is worse than nothing.
CANCELLING = {
    (): 1.0, (0,): 2.0, (1,): 2.0, (2,): 0.9,
    (0, 1): 0.1, (0, 2): 1.9, (1, 2): 1.9, (0, 1, 2): 0.05,
}  # fmt: skip


def test_a_loss_that_rises_before_it_falls_is_passed() -> None:
    result = search(three(1.0, 0.9, 0.1), CANCELLING, loss=0.2)
    assert [item.group.name for item in result.released] == ["layer_00", "layer_01"]
    assert (result.full_loss, result.loss) == (1.0, 0.1)


def test_a_group_that_turned_out_not_to_matter_is_taken_back() -> None:
    losses = {
        (): 1.0, (0,): 1.0, (1,): 0.1, (2,): 1.0,
        (0, 1): 0.1, (0, 2): 1.0, (1, 2): 0.1, (0, 1, 2): 0.1,
    }  # fmt: skip
    for limits in ({"loss": 0.2}, {}):
        result = search(three(1.0, 0.9, 0.1), losses, **limits)
        assert [item.group.name for item in result.released] == ["layer_01"]


def test_limits_of_work_and_of_groups_are_kept() -> None:
    result = search(three(1.0, 0.9, 0.1), CANCELLING, work=0.15)
    assert result.work <= 0.15
    assert result.loss <= 1.0
    result = search(three(1.0, 0.9, 0.1), CANCELLING, groups=2)
    assert len(result.released) == 2


def test_a_model_that_is_good_enough_stays_as_it_is() -> None:
    result = search(three(1.0, 0.9, 0.1), CANCELLING, loss=1.0)
    assert (result.released, result.work, result.loss) == ((), 0, 1.0)


def test_a_loss_that_cannot_be_reached_gives_the_least_loss() -> None:
    result = search(three(1.0, 0.9, 0.1), CANCELLING, loss=1e-9)
    assert result.loss == 0.05
    assert len(result.released) == 3


def test_no_candidates_release_nothing() -> None:
    assert search([], {(): 1.0}, loss=0.1).released == ()


def test_every_measured_part_is_a_step() -> None:
    result = search(three(1.0, 0.9, 0.1), CANCELLING, loss=0.2)
    for step in result.steps:
        released = tuple(sorted(int(name[-2:]) for name in step.released))
        assert step.loss == CANCELLING[released]
        assert step.work == pytest.approx(0.1 * len(released))


def test_the_way_of_yolov6_releases_by_rank_and_measures_once() -> None:
    table = LossTable(1, 0.0)
    result = release_first(table.candidates(), table.full, table.measure, 4)
    ranked = sorted(range(GROUPS), key=lambda i: -table.loss_of([i]))[:4]
    assert [item.group.name for item in result.released] == [f"layer_{i:02}" for i in ranked]
    assert len(table.measured) == 2
    everything = release_first(table.candidates(), table.full, table.measure, 99)
    assert len(everything.released) == GROUPS
