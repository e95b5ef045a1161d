"""Options of the accuracy that a validation requires."""

from __future__ import annotations

import click

from qdq.cli.options import collect_options, is_on_command_line
from qdq.errors import UsageError
from qdq.validation.validator import Thresholds


def _collect_thresholds(
    min_snr: float | None, min_cosine: float | None, min_top1: float | None
) -> Thresholds:
    return Thresholds(min_snr, min_cosine, min_top1)


#: Adds ``--min-snr``, ``--min-cosine`` and ``--min-top1``, which the command receives as one
#: `thresholds`.
threshold_options = collect_options(
    _collect_thresholds,
    click.option(
        "--min-snr",
        type=float,
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
    name="thresholds",
)


def refuse_unused_thresholds(ctx: click.Context) -> None:
    """Raise UsageError for a threshold on the command line where nothing is validated."""
    for name in ("min_snr", "min_cosine", "min_top1"):
        if is_on_command_line(ctx, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} applies to a validation. Pass --validate too.")
