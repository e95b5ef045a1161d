"""`qdq apply`: a plan and its scales onto the model."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.calibration.scales import read_scales
from qdq.cli.float_options import io_option, scales_option
from qdq.cli.messages import name_files_in_errors, print_note, print_summary_line
from qdq.cli.options import FILE, collect_options, output_options
from qdq.files.output import check_output
from qdq.graph.float_types import FLOAT_TYPES
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.onnx_checker import require_valid
from qdq.pipeline.float_options import FloatOptions
from qdq.pipeline.plan_application import cast_applied
from qdq.planning.plan_edits import require_edits
from qdq.planning.plan_file import read_plan_file
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.precision.float_plan import FloatPlan
from qdq.rewriting.inserter import apply_plan
from qdq.rewriting.model_file import save


class ApplyArguments(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    plan: Path
    scales_file: Path
    output: Path
    force: bool
    scales: str
    io: str


@click.command("apply")
@click.argument("model", type=FILE)
@click.argument("plan", type=FILE)
@click.argument("scales_file", metavar="SCALES", type=FILE)
@output_options
@scales_option
@io_option
@collect_options(ApplyArguments)
def command(options: ApplyArguments) -> None:
    """Write MODEL with the Q/DQ pairs of PLAN and the scales of SCALES.

    A plan made with --float also casts what gets no pair.

    \b
    Example:
      qdq apply resnet50.onnx resnet50.plan.yaml resnet50.scales.json -o resnet50.int8.onnx
    """
    check_output(options.output, options.force)
    plan_file = read_plan_file(options.plan)
    scales = read_scales(options.scales_file)
    source = source_at_plan_opset(load(options.model), plan_file.plan)
    require_valid(source)
    index = GraphIndex(source)
    require_edits(plan_file, index)
    with name_files_in_errors(options.plan, options.scales_file):
        quantized_model = apply_plan(index, plan_file.plan, scales)
    floats = FloatOptions(scales=options.scales, io=options.io)
    cast_model = cast_applied(index, plan_file.plan, scales, quantized_model, floats)
    if cast_model is None:
        save(quantized_model, source, options.output, options.force)
    else:
        _print_overflowing(cast_model.report.plan)
        save(cast_model.model, cast_model.output_source, options.output, options.force)
    print_summary_line(f"wrote {options.output}")


def _print_overflowing(plan: FloatPlan) -> None:
    """Warn of what the type does not hold, once a tensor."""
    label = FLOAT_TYPES[plan.to].label
    for tensor in {item.tensor: item for item in plan.overflowing}.values():
        print_note(
            f"warning: {tensor.tensor!r} reaches {tensor.largest:.6g}, which {label} does not "
            f"hold. Add {tensor.node!r} and what else reads and writes it to 'keep_fp32' of the "
            "plan."
        )
