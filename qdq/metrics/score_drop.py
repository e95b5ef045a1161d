"""The drop of a score against the float model that is allowed."""

from __future__ import annotations

import math
from numbers import Real

import msgspec

from qdq.arguments import wrong_type
from qdq.errors import UsageError

_ADVICE = "a share of the float model's score such as '0.5%', or a number such as 0.005"

#: Scores that differ by less are equal: the difference of two scores is rounded.
_ROUNDING = 1e-12


class Drop(msgspec.Struct, frozen=True):
    """How much worse than the float model's a score may be."""

    #: The amount of score, or its share of the float model's score.
    amount: float
    is_relative: bool

    def __str__(self) -> str:
        return f"{100 * self.amount:.10g}%" if self.is_relative else f"{self.amount:.10g}"

    def least_score(self, float_score: float) -> float:
        """Return the least score that is allowed beside the float model's score."""
        unit = abs(float_score) if self.is_relative else 1.0
        return float_score - self.amount * unit

    def allows(self, score: float, float_score: float) -> bool:
        """Whether a score is allowed beside the float model's score."""
        rounding = _ROUNDING * max(1.0, abs(float_score))
        return score >= self.least_score(float_score) - rounding


def to_drop(value: object, name: str) -> Drop:
    """Return the drop that a text such as "0.5%" or "0.005", or a number, specifies.

    Raises UsageError, beginning with `name`, for other values.
    """
    if isinstance(value, Drop):
        return value
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise wrong_type(value, name, _ADVICE)
    text = str(value).strip()
    is_relative = text.endswith("%")
    try:
        amount = float(text.removesuffix("%"))
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise UsageError(f"{name}: {text!r} is no drop. Pass {_ADVICE}.")
    return Drop(amount / 100 if is_relative else amount, is_relative)
