"""Options of partial quantization: the guard, and budgets for what stays in float."""

from __future__ import annotations

import click
import msgspec

from qdq.cli.options import collect_options, is_on_command_line
from qdq.cli.shares import OFF, parse_share
from qdq.errors import UsageError
from qdq.metrics.metric import Metric
from qdq.metrics.score_drop import to_drop
from qdq.pipeline.recovery_options import AUTO, Recovery, parse_methods
from qdq.runtime.session import Progress
from qdq.sensitivity.budget import Budget
from qdq.sensitivity.guard import DEFAULT_GUARD
from qdq.validation.validator import Thresholds

#: The options that `partial_options` adds.
PARTIAL_OPTIONS = ("guard", "keep_float", "float_first", "recover")

#: The thresholds that a search reaches where they are on the command line.
BUDGET_THRESHOLDS = ("min_snr", "max_drop")

_DEFAULT_GUARD = f"{DEFAULT_GUARD:.0%}"


class PartialArguments(msgspec.Struct, frozen=True):
    """The values of the options."""

    #: A share of the multiply-accumulates; 0.0 for no guard.
    guard: float
    keep_float: float | None
    float_first: int | None
    #: The recovery methods, as `Recovery.methods` takes them.
    recover: str
    #: Whether --min-snr and --max-drop state budgets. Those of the project file judge only.
    limits_snr: bool = False
    limits_drop: bool = False

    @property
    def has_budget(self) -> bool:
        """Whether the options state what the model must reach, or what may stay in float."""
        stated = self.keep_float is not None or self.float_first is not None
        return stated or self.limits_snr or self.limits_drop

    def make_recovery(self, budget: Budget | None, progress: Progress) -> Recovery:
        """Return the options of recovery."""
        return Recovery(self.guard, budget, self.recover, progress)

    def make_budget(
        self, ctx: click.Context, thresholds: Thresholds, metric: Metric | None
    ) -> Budget | None:
        """Return the budget of a quantized model; None where only the guard applies.

        Raises UsageError for options that contradict each other.
        """
        if not self.has_budget:
            return None
        if is_on_command_line(ctx, "guard"):
            raise UsageError("--guard and a budget are two ways to choose. Drop --guard.")
        if self.float_first is not None and (
            self.limits_snr or self.limits_drop or self.keep_float is not None
        ):
            raise UsageError(
                "--float-first takes a number of layers and measures nothing. "
                "Drop --min-snr, --max-drop and --keep-float, or drop --float-first."
            )
        min_snr_db = thresholds.snr_db if self.limits_snr else None
        max_drop = None
        if self.limits_drop and thresholds.max_drop is not None:
            max_drop = to_drop(thresholds.max_drop, "--max-drop")
        return Budget(min_snr_db, metric, max_drop, self.keep_float, self.float_first)


def _collect_partial(
    guard: str, keep_float: str | None, float_first: int | None, recover: str
) -> PartialArguments:
    share = 0.0 if guard == OFF else parse_share(guard, "--guard", f" or {OFF}")
    kept = None if keep_float is None else parse_share(keep_float, "--keep-float", "")
    parse_methods(recover)
    ctx = click.get_current_context()
    limits_snr = is_on_command_line(ctx, "min_snr")
    limits_drop = is_on_command_line(ctx, "max_drop")
    return PartialArguments(share, kept, float_first, recover, limits_snr, limits_drop)


#: Adds ``--guard``, ``--keep-float`` and ``--float-first``, which the command receives as one
#: `partial`.
partial_options = collect_options(
    _collect_partial,
    click.option(
        "--guard",
        default=_DEFAULT_GUARD,
        show_default=True,
        metavar="SHARE|off",
        help="Leave in float a part of at most SHARE of the multiply-accumulates, "
        "where a measurement on calibration samples shows that it makes most of the error.",
    ),
    click.option(
        "--keep-float",
        metavar="SHARE",
        help="Leave in float at most SHARE of the multiply-accumulates, where that gains most. "
        "With --min-snr or --max-drop: the most that these may leave in float.",
    ),
    click.option(
        "--float-first",
        type=click.IntRange(1),
        metavar="K",
        help="Leave in float the K layers that make the most noise alone, as YOLOv6 does, "
        "without measuring them together.",
    ),
    click.option(
        "--recover",
        default=AUTO,
        show_default=True,
        metavar="METHODS|off",
        help="Methods that recover accuracy in INT8, each kept where a measurement improves: "
        "equalize (channel factors), clip (heavy tails of ranges), refine (ranges by measured "
        "error), bias (mean errors), with commas. auto: equalize,clip.",
    ),
    name="partial",
)
