"""Ranks of groups, and shortlists, on a network with a planted layer."""

from __future__ import annotations

import pytest

from qdq.sensitivity import plan_sensitivity
from qdq.sensitivity.plan_sensitivity import PlanSensitivity
from tests.support.calibrated_plans import calibrate_plan, read_samples
from tests.support.outlier_models import BAD, outlier_model, outlier_samples


@pytest.fixture
def sensitivity() -> PlanSensitivity:
    """Return the planted network over six samples."""
    feeds = [{"x": sample[None]} for sample in outlier_samples()]
    calibrated = calibrate_plan(outlier_model(), feeds)
    return PlanSensitivity(calibrated, read_samples(calibrated, feeds))


def test_the_rank_has_every_group_once_and_the_worst_exactly(sensitivity: PlanSensitivity) -> None:
    ranked = sensitivity.rank_alone(sensitivity.groups)
    names = [candidate.group.name for candidate in ranked]
    assert sorted(names) == sorted(group.name for group in sensitivity.groups)
    assert names[0] == BAD
    (exact,) = sensitivity.measure_alone([ranked[0].group])
    assert ranked[0].alone == exact.alone
    losses = [candidate.alone for candidate in ranked]
    assert losses == sorted(losses, reverse=True)


def test_ranking_takes_fewer_runs_than_all_groups_with_all_samples(
    sensitivity: PlanSensitivity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_sensitivity, "_FEW_RUNS", 8)
    before = sensitivity.measurement.runs
    sensitivity.rank_alone(sensitivity.groups)
    runs = sensitivity.measurement.runs - before
    assert runs < len(sensitivity.groups) * sensitivity.measurement.count


def test_few_groups_are_all_ranked_over_all_samples(sensitivity: PlanSensitivity) -> None:
    ranked = sensitivity.rank_alone(sensitivity.groups)
    assert {candidate.samples for candidate in ranked} == {sensitivity.measurement.count}


@pytest.mark.parametrize("most_screened", [2, 256])
def test_a_shortlist_has_the_worst(
    sensitivity: PlanSensitivity, most_screened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_sensitivity, "_MOST_SCREENED", most_screened)
    shortlist = sensitivity.shortlist(sensitivity.groups, 2)
    assert len(shortlist) == 2
    assert BAD in {group.name for group in shortlist}


def test_shares_of_the_work_add_up(sensitivity: PlanSensitivity) -> None:
    shares = [sensitivity.work_share(group) for group in sensitivity.groups]
    assert sum(shares) == pytest.approx(1.0)
    assert sensitivity.int8_work == pytest.approx(1.0)
