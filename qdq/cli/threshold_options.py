"""Options of the metric of a validation, and of the accuracy that it requires."""

from __future__ import annotations

import re
from collections.abc import Container

import click

from qdq.cli.options import collect_options, is_on_command_line
from qdq.errors import UsageError
from qdq.metrics.metric import Metric
from qdq.metrics.metric_files import load_metric
from qdq.metrics.score_drop import to_drop
from qdq.validation.validator import Thresholds, no_drop_error

_DECIBELS = re.compile(r"([-+]?\d+(?:\.\d+)?) ?(dB)?", re.IGNORECASE)
_METRIC_THRESHOLDS = ("min_metric", "max_drop")
_THRESHOLDS = ("min_snr", "min_cosine", "min_top1", *_METRIC_THRESHOLDS)


def parse_decibels(
    ctx: click.Context, parameter: click.Parameter, text: str | float | None
) -> float | None:
    """Return the ratio in dB that a text such as "25dB" or "25" states."""
    if text is None:
        return None
    match = _DECIBELS.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(f"--min-snr: {text!r} is no ratio in dB. Pass a number such as 25dB.")
    return float(match[1])


def _collect_thresholds(
    min_snr: float | None,
    min_cosine: float | None,
    min_top1: float | None,
    min_metric: float | None,
    max_drop: str | None,
) -> Thresholds:
    if max_drop is not None:
        to_drop(max_drop, "--max-drop")
    return Thresholds(min_snr, min_cosine, min_top1, min_metric, max_drop)


#: Adds ``--metric``.
metric_option = click.option(
    "--metric",
    metavar="NAME|FILE",
    help="Score both models on the data: top1 (labels, or agreement with float; classes of "
    "pictures are numbered by the order of their folders, else by --labels), snr, "
    "or a function of yours as FILE.py:FUNCTION (qdq docs metrics).",
)

#: Adds ``--min-snr``, ``--min-cosine``, ``--min-top1``, ``--min-metric`` and ``--max-drop``, which
#: the command receives as one `thresholds`.
threshold_options = collect_options(
    _collect_thresholds,
    click.option(
        "--min-snr",
        callback=parse_decibels,
        metavar="DB",
        help="Minimum signal-to-noise ratio of every output.",
    ),
    click.option("--min-cosine", type=float, help="Minimum cosine similarity of every output."),
    click.option(
        "--min-top1",
        type=float,
        metavar="SHARE",
        help="Minimum top-1 agreement of class scores, such as 0.95.",
    ),
    click.option("--min-metric", type=float, help="Minimum score by --metric."),
    click.option(
        "--max-drop",
        metavar="DROP",
        help="Largest loss by --metric against FLOAT: 0.005 of score, "
        "or 0.5% of the float model's score.",
    ),
    name="thresholds",
)


def read_metric(
    ctx: click.Context, text: str | None, has_data: bool, thresholds: Thresholds
) -> Metric | None:
    """Return the metric of ``--metric``, None without one or without data to score.

    Raises UsageError for options on the command line that have no effect.
    """
    if not has_data and is_on_command_line(ctx, "metric"):
        raise UsageError("--metric scores samples. Pass --data or --images.")
    if text is None or not has_data:
        for name in _METRIC_THRESHOLDS:
            if is_on_command_line(ctx, name):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} judges a metric's score. Pass --metric too.")
        return None
    metric = load_metric(text)
    if thresholds.max_drop is not None and not metric.scores_float_model:
        raise no_drop_error(metric.name)
    return metric


def refuse_unused_thresholds(ctx: click.Context, used: Container[str] = ()) -> None:
    """Raise UsageError for a threshold on the command line where nothing is validated.

    `used` are the names of those that the command uses otherwise.
    """
    for name in ("metric", *_THRESHOLDS):
        if name not in used and is_on_command_line(ctx, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} applies to a validation. Pass --validate too.")
