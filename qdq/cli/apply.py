"""`qdq apply`: a plan and its scales onto the model."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.options import FILE, naming, output_option
from qdq.index import GraphIndex
from qdq.loading import load
from qdq.planedits import require_edits
from qdq.planfile import read_plan_file, read_scales
from qdq.planning import source_for
from qdq.quantizing import save
from qdq.rewriting import apply_index
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
    planned, scaled = read_plan_file(plan), read_scales(scales)
    source = source_for(load(model), planned.plan)
    index = GraphIndex(source)
    require_edits(planned, index)
    with naming(plan, scales):
        rewritten = apply_index(index, planned.plan, scaled)
    save(rewritten, source, output, force)
    click.echo(f"wrote {output}")
