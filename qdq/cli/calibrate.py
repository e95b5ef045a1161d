"""`qdq calibrate`: data and a plan in, scales out."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.calibration import parse_method, ranges_of, scales_from
from qdq.cli.options import FILE, data_option, method_option, naming, output_option, progress
from qdq.feeds import DataLike, data_files, open_feeds
from qdq.index import GraphIndex
from qdq.loading import load
from qdq.observing import Job
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
@output_option
def command(  # noqa: PLR0913, PLR0917 click passes each option
    model: Path, plan: Path, data: DataLike | None, batch: int | None, method: str, weights: str | None, output: Path, force: bool
) -> None:
    """Run MODEL over the data and write the scales that PLAN needs, as JSON.

    \b
    Example:
      qdq calibrate resnet50.onnx resnet50.plan.yaml --data samples/ -o resnet50.scales.json
      qdq calibrate resnet50.onnx resnet50.plan.yaml --images photos/ --preprocess imagenet --samples 256 -o resnet50.scales.json
    """
    check_output(output, (model, plan, *data_files(data)), force)
    planned, way = read_plan_file(plan), parse_method(method, weights)
    index = GraphIndex(source_for(load(model), planned.plan))
    require_edits(planned, index)
    feeds = open_feeds(index, data, batch)
    with naming(plan), progress("calibrating", feeds.count) as advance:
        scales = scales_from(index, planned.plan, ranges_of(Job(index, planned.plan, data, way.needs_histogram, batch), progress=advance), way)
    write_whole(output, scales_json(scales))
    click.echo(sections_text([scales_summary(scales)]), nl=False)
    click.echo(f"\nwrote {output}")
