"""The request of `quantize`: its arguments, checked and grouped by the stage that they decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from qdq.arguments import require_callable, require_choice, require_type
from qdq.data.feeds import DataLike
from qdq.data.sample_recorder import record_samples
from qdq.graph.shape_profiles import Profile, ProfilesLike, to_profiles
from qdq.graph.source import ModelLike
from qdq.observers.collection import Observing
from qdq.pipeline.float_options import FloatOptions
from qdq.pipeline.recovery_options import Recovery
from qdq.planning.decisions import Plan
from qdq.planning.plan_request import to_globs
from qdq.ranges.known_ranges import KnownRanges, RangesLike, to_known_ranges
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import RulesLike, to_rule_set
from qdq.runtime.session import Progress
from qdq.target import Target, TargetsLike, to_targets

#: The samples that are kept of data which can be iterated only once.
RECORDED_SAMPLES = 8

#: The forms of a quantized model's weights: floats with pairs, and quantized values, the nearest
#: ones or those that GPTQ chooses.
FLOAT_WEIGHTS = "float"
QUANTIZED_WEIGHTS = "quantized"
GPTQ_WEIGHTS = "gptq"
WEIGHT_FORMS = (FLOAT_WEIGHTS, QUANTIZED_WEIGHTS, GPTQ_WEIGHTS)


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


def to_calibration_options(  # noqa: PLR0913, PLR0917 the arguments of `quantize`
    data: DataLike | None,
    batch: int | None,
    method: str,
    weights: str | None,
    observing: Observing,
    progress: Progress | None,
    given: RangesLike | None,
) -> CalibrationOptions:
    """Return the calibration options of what users pass; raises UsageError for other types."""
    known_ranges = to_known_ranges(given)
    data = record_samples(data, RECORDED_SAMPLES)
    return CalibrationOptions(data, batch, method, weights, observing, progress, known_ranges)


class QuantizeRequest(msgspec.Struct, frozen=True):
    """The arguments of `quantize`."""

    model: ModelLike
    #: `keep`, `repair` or `replace`.
    existing: str
    planning: PlanningOptions
    calibration: CalibrationOptions
    #: None where the plan is not compiled.
    build_options: BuildOptions | None
    recovery: Recovery
    #: Called with the plan before calibration starts.
    planned: Callable[[Plan], None] | None
    #: One of WEIGHT_FORMS.
    store_weights: str = FLOAT_WEIGHTS
    floats: FloatOptions = FloatOptions()

    def __post_init__(self) -> None:
        require_choice(self.store_weights, WEIGHT_FORMS, "store_weights")
        require_callable(self.planned, "planned")
        require_type(self.recovery, Recovery, "recovery", "qdq.Recovery(...)")

    def is_measured(self, is_float: bool) -> bool:
        """Whether a part may be left in float by measurement.

        Not of a model that was quantized already: it may be trained to be quantized as it is.
        """
        if not self.recovery.is_measured:
            return False
        return is_float or self.existing == "replace"
