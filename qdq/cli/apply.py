"""`qdq apply`: a plan and its scales onto the model."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.options import FILE, naming, output_option
from qdq.loading import load
from qdq.planfile import read_plan, read_scales
from qdq.quantizing import save
from qdq.rewriting import apply
from qdq.saving import check_output


@click.command("apply")
@click.argument("model", type=FILE)
@click.argument("plan", type=FILE)
@click.argument("scales", type=FILE)
@output_option
def command(model: Path, plan: Path, scales: Path, output: Path, force: bool) -> None:
    """Write MODEL with the pairs of PLAN and the scales of SCALES.

    \b
    Example:
      qdq apply resnet50.onnx resnet50.plan.yaml resnet50.scales.json -o resnet50.int8.onnx
    """
    check_output(output, (model, plan, scales), force)
    source = load(model)
    planned, scaled = read_plan(plan), read_scales(scales)
    with naming(plan, scales):
        rewritten = apply(source, planned, scaled)
    save(rewritten, source, output, force)
    click.echo(f"wrote {output}")
