"""The request of `quantize`: its arguments, checked and grouped by the stage that they decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real

import msgspec

from qdq.arguments import require_callable, require_type
from qdq.calibration.calibrator import KnownRanges
from qdq.data.feeds import DataLike
from qdq.errors import UsageError
from qdq.graph.shape_profiles import Profile, ProfilesLike, to_profiles
from qdq.graph.source import ModelLike
from qdq.observers.collection import Observing
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import to_globs
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import RulesLike, to_rule_set
from qdq.runtime.session import Progress
from qdq.sensitivity.budget import Budget
from qdq.sensitivity.guard import DEFAULT_GUARD
from qdq.target import Target, TargetsLike, to_targets


class BuildOptions(msgspec.Struct, frozen=True):
    """How the plan is built for `until_it_builds`."""

    #: Shapes of inputs by name; dynamic dimensions of other inputs become 1.
    shapes: Mapping[str, tuple[int, ...]] = {}
    #: Called after each build with the number of builds so far.
    progress: Progress | None = None


def to_planning_options(
    rules: RulesLike | None,
    targets: TargetsLike,
    leave_float: str | Iterable[str],
    allow_unmatched: bool,
    profiles: ProfilesLike,
) -> PlanningOptions:
    """Return the planning options of what users pass; raises UsageError for other types."""
    return PlanningOptions(
        None if rules is None else to_rule_set(rules),
        to_targets(targets),
        to_globs(leave_float),
        allow_unmatched,
        to_profiles(profiles),
    )


def to_build_options(until_it_builds: BuildOptions | bool | None) -> BuildOptions | None:
    """Return the build options of what users pass; raises UsageError for other types."""
    if isinstance(until_it_builds, BuildOptions):
        return until_it_builds
    require_type(until_it_builds, (bool, type(None)), "until_it_builds", "True or BuildOptions")
    return BuildOptions() if until_it_builds else None


class PlanningOptions(msgspec.Struct, frozen=True):
    """The arguments of `quantize` that decide the plan."""

    #: None for the default rule sets.
    rules: RuleSet | None
    targets: tuple[Target, ...]
    leave_float: tuple[str, ...]
    allow_unmatched: bool
    profiles: tuple[Profile, ...]

    def __post_init__(self) -> None:
        require_type(self.allow_unmatched, bool, "allow_unmatched", "True or False")


class CalibrationOptions(msgspec.Struct, frozen=True):
    """The arguments of `quantize` that decide the scales."""

    data: DataLike | None
    batch: int | None
    method: str
    weights: str | None
    observing: Observing
    progress: Progress | None
    known_ranges: KnownRanges | None

    def __post_init__(self) -> None:
        require_type(self.observing, Observing, "observing", "qdq.Observing(...)")
        require_callable(self.progress, "progress")


class PartialOptions(msgspec.Struct, frozen=True):
    """The arguments of `quantize` that decide which part is left in float by measurement."""

    #: The largest share of the multiply-accumulates that the guard leaves in float; 0.0 for none.
    guard: float = DEFAULT_GUARD
    #: What the model must reach; None for the guard.
    budget: Budget | None = None
    #: Called after each run with the number of runs so far.
    progress: Progress | None = None


def to_partial_options(
    guard: float | bool, budget: Budget | None, progress: Progress | None
) -> PartialOptions:
    """Return the options of what users pass; raises UsageError for values that do not fit."""
    require_type(guard, (bool, Real), "guard", "True, False or a share such as 0.03")
    require_type(budget, (Budget, type(None)), "budget", "qdq.Budget(...)")
    require_callable(progress, "partial_progress")
    share = (DEFAULT_GUARD if guard else 0.0) if isinstance(guard, bool) else float(guard)
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"guard: {share:g} is no share. Pass a number from 0 to 1.")
    return PartialOptions(share, budget, progress)


class QuantizeRequest(msgspec.Struct, frozen=True):
    """The arguments of `quantize`."""

    model: ModelLike
    #: `keep`, `repair` or `replace`.
    existing: str
    planning: PlanningOptions
    calibration: CalibrationOptions
    #: None where the plan is not compiled.
    build_options: BuildOptions | None
    partial: PartialOptions
    #: Called with the plan before calibration starts.
    planned: Callable[[Plan], None] | None

    def __post_init__(self) -> None:
        require_callable(self.planned, "planned")

    def is_measured(self, is_float: bool) -> bool:
        """Whether a part may be left in float by measurement.

        Not of a model that was quantized already: it may be trained to be quantized as it is.
        """
        if self.partial.guard == 0.0 and self.partial.budget is None:
            return False
        return is_float or self.existing == "replace"
