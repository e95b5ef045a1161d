"""`qdq apply`: a plan and its scales onto the model."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.calibration.scales import read_scales
from qdq.cli.messages import name_files_in_errors, print_line
from qdq.cli.options import FILE, output_options
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
@output_options
def command(model: Path, plan: Path, scales: Path, output: Path, force: bool) -> None:
    """Write MODEL with the Q/DQ pairs of PLAN and the scales of SCALES.

    \b
    Example:
      qdq apply resnet50.onnx resnet50.plan.yaml resnet50.scales.json -o resnet50.int8.onnx
    """
    check_output(output, force)
    plan_file = read_plan_file(plan)
    plan_scales = read_scales(scales)
    source = source_at_plan_opset(load(model), plan_file.plan)
    index = GraphIndex(source)
    require_edits(plan_file, index)
    with name_files_in_errors(plan, scales):
        quantized_model = apply_plan(index, plan_file.plan, plan_scales)
    save(quantized_model, source, output, force)
    print_line(f"wrote {output}")
