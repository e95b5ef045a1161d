"""`qdq calibrate`: data and a plan in, scales out."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.calibration.calibrator import compute_scales, observe_job
from qdq.calibration.methods import Method
from qdq.calibration.scales import scales_to_json
from qdq.cli.data_options import DataOptions, data_options
from qdq.cli.messages import name_files_in_errors, print_summary, print_written
from qdq.cli.observing_options import observing_options
from qdq.cli.options import FILE, collect_options, output_options
from qdq.cli.progress import progress, resumable
from qdq.cli.ranges_options import (
    MethodOptions,
    list_observed_files,
    method_options,
    ranges_option,
    read_known_ranges,
    save_ranges_option,
)
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic, written_together
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.onnx_checker import require_valid
from qdq.observers.collection import CollectionJob, Observing
from qdq.planning.plan_document import PlanFile
from qdq.planning.plan_edits import require_edits
from qdq.planning.plan_file import read_plan_file
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.ranges.known_ranges import KnownRanges
from qdq.ranges.range_file import write_ranges
from qdq.reports.scales_sections import ranges_summary, scales_summary
from qdq.reports.sections import Section


class CalibrateOptions(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    plan: Path
    output: Path
    force: bool
    data: DataOptions
    method: MethodOptions
    ranges: Path | None
    observing: Observing
    shard: str | None
    save_ranges: Path | None

    def check_outputs(self) -> None:
        """Raise UsageError, before any work, for a file that could not be written at the end."""
        check_output(self.output, self.force)
        if self.shard and self.ranges:
            raise UsageError(
                "--shard only observes samples and chooses no scales. "
                "Pass --ranges where scales are chosen, without --shard."
            )
        if not self.save_ranges:
            return
        if self.shard:
            raise UsageError("--shard writes the ranges of its part to -o. Drop --save-ranges.")
        check_output(self.save_ranges, self.force)


@click.command("calibrate")
@click.argument("model", type=FILE)
@click.argument("plan", type=FILE)
@data_options
@method_options
@ranges_option
@observing_options
@click.option(
    "--shard",
    metavar="I/N",
    help="Run only every N-th sample, starting with the I-th, "
    "and write the ranges for 'qdq ranges merge'.",
)
@save_ranges_option
@output_options
@click.pass_context
@collect_options(CalibrateOptions)
def command(ctx: click.Context, options: CalibrateOptions) -> None:
    """Run MODEL over the data and write the scales that PLAN needs, as JSON.

    With --ranges, the tensors that FILE names get its ranges. Without data, FILE must name all
    tensors that PLAN quantizes. With --shard, the ranges of a part of the data are written instead.

    \b
    Example:
      qdq calibrate resnet50.onnx resnet50.plan.yaml --data samples/ -o resnet50.scales.json
      qdq calibrate net.onnx net.plan.yaml --images photos/ --preprocess imagenet -o net.scales.json
      qdq calibrate resnet50.onnx resnet50.plan.yaml --data samples/ --shard 2/8 -o part2.ranges
      qdq calibrate resnet50.onnx resnet50.plan.yaml --ranges resnet50.cache -o resnet50.scales.json
    """
    options.check_outputs()
    known_ranges = read_known_ranges(ctx, options.ranges, options.data)
    plan_file = read_plan_file(options.plan)
    method = options.method.parse()
    job = _make_job(options, plan_file, method)
    summary = _calibrate(options, job, method, known_ranges)
    print_summary("text", None, [summary])
    written = [options.output]
    if options.save_ranges:
        written.append(options.save_ranges)
    print_written(written)


def _make_job(options: CalibrateOptions, plan_file: PlanFile, method: Method) -> CollectionJob:
    source = source_at_plan_opset(load(options.model), plan_file.plan)
    require_valid(source)
    index = GraphIndex(source)
    require_edits(plan_file, index)
    return CollectionJob(
        index, plan_file.plan, options.data.source, method.needs_histogram, options.data.batch
    )


def _calibrate(
    options: CalibrateOptions,
    job: CollectionJob,
    method: Method,
    known_ranges: KnownRanges | None,
) -> Section:
    """Write the scales, or the ranges of a shard, and return their summary."""
    part = options.observing.part
    feeds = options.data.open_feeds(job.index, optional=known_ranges is not None)
    total = feeds.left(part.number - 1, part.of) if feeds else None
    named_files = (options.plan, *list_observed_files(options.ranges, known_ranges))
    with (
        name_files_in_errors(*named_files),
        resumable(options.observing),
        progress("calibrating", total, resumed=options.observing.resume) as advance,
    ):
        if options.shard:
            ranges = observe_job(job, options.observing, advance)
            write_ranges(options.output, ranges)
            return ranges_summary(ranges)
        scales, ranges = compute_scales(job, method, options.observing, advance, known_ranges)
        with written_together():
            write_atomic(options.output, scales_to_json(scales))
            if options.save_ranges:
                write_ranges(options.save_ranges, ranges)
        return scales_summary(scales)
