"""Options of partial quantization: the guard, and budgets for what stays in float."""

from __future__ import annotations

import math
import re

import click
import msgspec

from qdq.cli.options import collect_options, is_on_command_line
from qdq.errors import UsageError
from qdq.metrics.metric import Metric
from qdq.metrics.score_drop import to_drop
from qdq.sensitivity.budget import Budget
from qdq.sensitivity.guard import DEFAULT_GUARD
from qdq.validation.validator import Thresholds, no_drop_error

#: The options that `partial_options` adds.
PARTIAL_OPTIONS = ("guard", "keep_float", "float_first")

_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
_DEFAULT_GUARD = f"{DEFAULT_GUARD:.0%}"


class PartialArguments(msgspec.Struct, frozen=True):
    """The values of the options."""

    #: A share of the multiply-accumulates; 0.0 for no guard.
    guard: float
    keep_float: float | None
    float_first: int | None

    def make_budget(
        self, ctx: click.Context, thresholds: Thresholds, metric: Metric | None
    ) -> Budget | None:
        """Return the goal of a quantized model; None where only the guard applies.

        Raises UsageError for a drop without a metric.
        """
        max_drop = None
        if thresholds.max_drop is not None:
            max_drop = to_drop(thresholds.max_drop, "--max-drop")
            if metric is None:
                raise UsageError("--max-drop judges a metric's score. Pass --metric too.")
            if not metric.scores_float_model:
                raise no_drop_error(metric.name)
        budget = Budget(thresholds.snr_db, metric, max_drop, self.keep_float, self.float_first)
        if budget.first is not None and str(budget) != f"first {budget.first}":
            raise UsageError(
                "--float-first takes a number of layers and measures nothing. "
                "Drop --min-snr, --max-drop and --keep-float, or drop --float-first."
            )
        if str(budget) and is_on_command_line(ctx, "guard"):
            raise UsageError("--guard and a budget are two ways to choose. Drop --guard.")
        return budget if str(budget) else None


def _collect_partial(
    guard: str, keep_float: str | None, float_first: int | None
) -> PartialArguments:
    share = 0.0 if guard == "off" else _parse_share(guard, "--guard", " or off")
    kept = None if keep_float is None else _parse_share(keep_float, "--keep-float", "")
    return PartialArguments(share, kept, float_first)


def _parse_share(text: str, option: str, alternative: str) -> float:
    match = _PERCENT.fullmatch(text)
    share = float(match[1]) / 100 if match else math.nan
    if not 0.0 <= share <= 1.0:
        raise UsageError(
            f"{option}: {text!r} is no share. Pass a percentage such as 5%{alternative}."
        )
    return share


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
    name="partial",
)
