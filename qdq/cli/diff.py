"""`qdq diff`: pairs added, removed, moved and rescaled between two models."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.options import FILE, format_option, show
from qdq.quantized.pair_diff import diff
from qdq.reports.changes import diff_sections


@click.command("diff")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@format_option
@click.pass_context
def command(ctx: click.Context, old: Path, new: Path, layout: str) -> None:
    """Print which Q/DQ pairs NEW has and OLD has not, and the other way round, which moved, and which have other scales.

    Either may be a float model, and both may come from other tools or from exports that name nodes
    otherwise. Exit 0 if they have the same pairs, 1 if not.

    \b
    Example:
      qdq diff resnet50.int8.onnx resnet50.repaired.onnx
      qdq diff resnet50.onnx resnet50.int8.onnx --format json
    """
    found = diff(old, new)
    show(layout, found, list(diff_sections(found)))
    ctx.exit(1 if found else 0)
