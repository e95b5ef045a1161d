"""`qdq calibrate`: data and a plan in, scales out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qdq.calibration.calibrator import compute_scales, observe_job
from qdq.calibration.methods import parse_method
from qdq.calibration.scales import scales_to_json
from qdq.cli.options import (
    FILE,
    data_option,
    feeds_of,
    given_ranges,
    method_option,
    naming,
    observed_in,
    observing_option,
    output_option,
    ranges_option,
    save_ranges_option,
)
from qdq.cli.progress import progress, resumable
from qdq.data.feeds import data_files
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.observers.collection import CollectionJob, Observing
from qdq.planning.plan_edits import require_edits
from qdq.planning.plan_file import read_plan_file
from qdq.planning.planner import source_at_plan_opset
from qdq.ranges.range_file import write_ranges
from qdq.reports.scales_sections import ranges_summary, scales_summary
from qdq.reports.sections import sections_text


@click.command("calibrate")
@click.argument("model", type=FILE)
@click.argument("plan", type=FILE)
@data_option
@method_option
@ranges_option
@observing_option
@click.option(
    "--shard",
    metavar="I/N",
    help="Run every N-th sample only, from the I-th on, and write their ranges for 'qdq ranges merge'.",
)
@save_ranges_option
@output_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    plan: Path,
    output: Path,
    save_ranges: Path | None,
    **given: Any,
) -> None:
    """Run MODEL over the data and write the scales that PLAN needs, as JSON; with --shard the ranges of a part of it.

    With --ranges the tensors that FILE names get its ranges; without data it must name all that PLAN quantizes.

    \b
    Example:
      qdq calibrate resnet50.onnx resnet50.plan.yaml --data samples/ -o resnet50.scales.json
      qdq calibrate resnet50.onnx resnet50.plan.yaml --images photos/ --preprocess imagenet --samples 256 -o resnet50.scales.json
      qdq calibrate resnet50.onnx resnet50.plan.yaml --data samples/ --shard 2/8 -o part2.ranges
      qdq calibrate resnet50.onnx resnet50.plan.yaml --ranges resnet50.cache -o resnet50.scales.json
    """
    observing: Observing = given["observing"]
    outputs = _outputs(model, plan, output, save_ranges, given)
    ranges = given_ranges(ctx, given["ranges"], given["data"])
    planned, way = read_plan_file(plan), parse_method(given["method"], given["weights"])
    index = GraphIndex(source_at_plan_opset(load(model), planned.plan))
    require_edits(planned, index)
    job = CollectionJob(index, planned.plan, given["data"], way.needs_histogram, given["batch"])
    feeds = feeds_of(index, job.data, job.batch, ranges is not None)
    total = feeds.left(observing.part.number - 1, observing.part.of) if feeds else None
    with (
        naming(plan, *observed_in(given["ranges"], ranges)),
        resumable(observing),
        progress("calibrating", total, resumed=observing.resume) as advance,
    ):
        if given["shard"]:
            seen = observe_job(job, observing, advance)
            write_ranges(output, seen)
            made = ranges_summary(seen)
        else:
            scales, seen = compute_scales(job, way, observing, advance, ranges)
            write_atomic(output, scales_to_json(scales))
            made = scales_summary(scales)
        if save_ranges:
            write_ranges(save_ranges, seen)
    click.echo(sections_text([made]), nl=False)
    click.echo(f"\nwrote {', '.join(map(str, outputs))}")


def _outputs(
    model: Path, plan: Path, output: Path, save_ranges: Path | None, given: Mapping[str, Any]
) -> list[Path]:
    """Return the files that are written; raises UsageError, before any work, for one that could not be."""
    inputs = (
        model,
        plan,
        *data_files(given["data"]),
        *([given["ranges"]] if given["ranges"] else []),
    )
    check_output(output, inputs, given["force"])
    if given["shard"] and given["ranges"]:
        raise UsageError(
            "--shard only looks at samples; pass --ranges where scales are made of them"
        )
    if not save_ranges:
        return [output]
    if given["shard"]:
        raise UsageError("--shard writes the ranges of its part to -o; leave out --save-ranges")
    check_output(save_ranges, (*inputs, output), given["force"])
    return [output, save_ranges]
