"""The options of recovery: how `quantize` keeps the accuracy of the float model."""

from __future__ import annotations

from numbers import Real

import msgspec

from qdq.arguments import require_callable, require_type
from qdq.errors import UsageError
from qdq.runtime.session import Progress
from qdq.sensitivity.budget import Budget
from qdq.sensitivity.guard import DEFAULT_GUARD

#: Factors of channels, ranges without heavy tails, other ranges by the measured error, and means
#: of errors that are added to biases.
EQUALIZE, CLIP, REFINE, BIAS = "equalize", "clip", "refine", "bias"
RECOVERY_METHODS = (EQUALIZE, CLIP, REFINE, BIAS)

#: The methods by default: those that never lost in docs/results.md.
AUTO, OFF = "auto", "off"
AUTO_METHODS = (EQUALIZE, CLIP)


class Recovery(msgspec.Struct, frozen=True):
    """How `quantize` keeps the accuracy of a float model: by measurements on samples."""

    #: The largest share of the multiply-accumulates that the guard leaves in float, where they
    #: make most of the error; True for 0.03, False for none.
    guard: float | bool = True
    #: What the model must reach; None for the guard.
    budget: Budget | None = None
    #: The methods that keep layers in INT8: "auto", "off", or names such as "equalize,bias".
    methods: str = AUTO
    #: Called after each run with the number of runs so far.
    progress: Progress | None = None

    def __post_init__(self) -> None:
        require_type(
            self.guard, (bool, Real), "Recovery.guard", "True, False or a share such as 0.03"
        )
        require_type(self.budget, (Budget, type(None)), "Recovery.budget", "qdq.Budget(...)")
        require_type(self.methods, str, "Recovery.methods", "'auto', 'off' or 'equalize,bias'")
        require_callable(self.progress, "Recovery.progress")
        parse_methods(self.methods)
        if not 0.0 <= float(self.guard) <= 1.0:
            raise UsageError(
                f"Recovery.guard: {self.guard:g} is no share. Pass a number from 0 to 1."
            )

    @property
    def guard_share(self) -> float:
        """The largest share of the multiply-accumulates that the guard leaves in float."""
        if isinstance(self.guard, bool):
            return DEFAULT_GUARD if self.guard else 0.0
        return float(self.guard)

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods that keep layers in INT8."""
        return parse_methods(self.methods)

    @property
    def is_measured(self) -> bool:
        """Whether anything is measured."""
        return self.guard_share > 0.0 or self.budget is not None or bool(self.method_names)


def parse_methods(text: str) -> tuple[str, ...]:
    """Return the recovery methods that a text names; raises UsageError for unknown ones."""
    if text == AUTO:
        return AUTO_METHODS
    if text == OFF:
        return ()
    methods = tuple(name.strip() for name in text.split(","))
    for name in methods:
        if name not in RECOVERY_METHODS:
            known = ", ".join(RECOVERY_METHODS)
            raise UsageError(
                f"unknown recovery method {name!r}. Pass auto, off, or some of {known} with commas."
            )
    return methods


#: The guard and the default methods.
DEFAULT_RECOVERY = Recovery()
