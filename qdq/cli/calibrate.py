"""`qdq calibrate`: data and a plan in, scales out."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.calibration import calibrate_index, parse_method
from qdq.cli.options import FILE, data_option, feeds_of, given_ranges, method_option, naming, output_option, progress, ranges_option
from qdq.feeds import DataLike, data_files
from qdq.index import GraphIndex
from qdq.loading import load
from qdq.planedits import require_edits
from qdq.planfile import read_plan_file, scales_json
from qdq.planning import source_for
from qdq.reporting import scales_summary, sections_text
from qdq.saving import check_output, write_whole


@click.command("calibrate")
@click.argument("model", type=FILE)
@click.argument("plan", type=FILE)
@data_option
@method_option
@ranges_option
@output_option
@click.pass_context
def command(  # noqa: PLR0913, PLR0917 click passes each option
    ctx: click.Context,
    model: Path,
    plan: Path,
    data: DataLike | None,
    batch: int | None,
    method: str,
    weights: str | None,
    ranges: Path | None,
    output: Path,
    force: bool,
) -> None:
    """Run MODEL over the data and write the scales that PLAN needs, as JSON.

    With --ranges the tensors that FILE names get its ranges; without data it must name all that PLAN quantizes.

    \b
    Example:
      qdq calibrate resnet50.onnx resnet50.plan.yaml --data samples/ -o resnet50.scales.json
      qdq calibrate resnet50.onnx resnet50.plan.yaml --images photos/ --preprocess imagenet --samples 256 -o resnet50.scales.json
      qdq calibrate resnet50.onnx resnet50.plan.yaml --ranges resnet50.cache -o resnet50.scales.json
    """
    check_output(output, (model, plan, *data_files(data), *([ranges] if ranges else [])), force)
    given = given_ranges(ctx, ranges, data)
    planned, way = read_plan_file(plan), parse_method(method, weights)
    index = GraphIndex(source_for(load(model), planned.plan))
    require_edits(planned, index)
    feeds = feeds_of(index, data, batch, given)
    with naming(plan), progress("calibrating", feeds.count if feeds else None) as advance:
        scales = calibrate_index(index, planned.plan, data, way, batch, advance, given)
    write_whole(output, scales_json(scales))
    click.echo(sections_text([scales_summary(scales)]), nl=False)
    click.echo(f"\nwrote {output}")
