"""`qdq diff`: pairs added, removed, moved and rescaled between two models."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.messages import print_record
from qdq.cli.options import FILE, format_option
from qdq.quantized.pair_diff import diff
from qdq.reports.changes import diff_sections


@click.command("diff")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0.0),
    default=0.0,
    metavar="REL",
    help="Scales count as the same that differ by at most this share of the older one, as 0.01.",
)
@format_option
@click.pass_context
def command(ctx: click.Context, old: Path, new: Path, tolerance: float, layout: str) -> None:
    """Print the Q/DQ pairs that only OLD or only NEW has, that moved, or that have other scales.

    Either may be a float model. Both may come from other tools, or from exports that name nodes
    differently. Exit 0 if they have the same pairs, within the tolerance, 1 if not.

    \b
    Example:
      qdq diff resnet50.int8.onnx resnet50.repaired.onnx
      qdq diff resnet50.onnx resnet50.int8.onnx --format json
      qdq diff monday.int8.onnx tuesday.int8.onnx --tolerance 0.02
    """
    changes = diff(old, new, tolerance=tolerance)
    print_record(layout, changes, list(diff_sections(changes)))
    ctx.exit(1 if changes else 0)
