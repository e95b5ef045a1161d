"""`qdq apply`: a plan and its scales onto the model."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.calibration.scales import read_scales
from qdq.cli.options import FILE, naming, output_option
from qdq.files.output import check_output
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.planning.plan_edits import require_edits
from qdq.planning.plan_file import read_plan_file
from qdq.planning.planner import source_at_plan_opset
from qdq.rewriting.inserter import apply_plan
from qdq.rewriting.model_file import save


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
    source = source_at_plan_opset(load(model), planned.plan)
    index = GraphIndex(source)
    require_edits(planned, index)
    with naming(plan, scales):
        rewritten = apply_plan(index, planned.plan, scaled)
    save(rewritten, source, output, force)
    click.echo(f"wrote {output}")
