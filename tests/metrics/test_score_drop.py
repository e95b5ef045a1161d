"""Drops: amounts and shares of the float model's score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdq.errors import UsageError
from qdq.metrics.score_drop import Drop, to_drop

SCORES = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("value", "amount", "is_relative", "text"),
    [
        ("0.5%", 0.005, True, "0.5%"),
        ("0.005", 0.005, False, "0.005"),
        (0.25, 0.25, False, "0.25"),
        (0, 0, False, "0"),
        (" 2 % ", 0.02, True, "2%"),
    ],
)
def test_a_drop_is_an_amount_or_a_share(
    value: object, amount: float, is_relative: bool, text: str
) -> None:
    drop = to_drop(value, "max_drop")

    assert (drop.amount, drop.is_relative, str(drop)) == (amount, is_relative, text)
    assert to_drop(text, "max_drop") == to_drop(drop, "max_drop") == drop


@pytest.mark.parametrize("value", ["", "%", "half", "-1", "-1%", "nan", "inf", "1%%", math.nan, -1])
def test_other_texts_and_numbers_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"max_drop: .* is no drop\. Pass a share of the float"):
        to_drop(value, "max_drop")


@pytest.mark.parametrize("value", [None, True, [1]])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="max_drop: the argument is of type"):
        to_drop(value, "max_drop")


def test_the_least_score_is_below_the_float_models() -> None:
    assert Drop(0.5, False).least_score(0.75) == 0.25
    assert Drop(0.5, True).least_score(0.75) == 0.375
    assert Drop(0.5, True).least_score(-2.0) == -3.0
    assert not Drop(0.01, True).allows(0.98, 1.0)
    assert not Drop(0.1, False).allows(math.nan, 1.0)


@given(SCORES, st.floats(0, 1), st.booleans())
def test_the_float_score_and_the_least_score_are_allowed(
    score: float, amount: float, is_relative: bool
) -> None:
    drop = Drop(amount, is_relative)

    assert drop.allows(score, score)
    assert drop.allows(drop.least_score(score), score)
