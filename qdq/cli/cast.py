"""`qdq cast`: a float or Q/DQ model in FP16 or BF16."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.data_options import DataOptions, data_options
from qdq.cli.float_options import extremes_option, io_option, read_extremes, scales_option
from qdq.cli.messages import print_summary, print_written
from qdq.cli.options import FILE, collect_options, format_option, output_options
from qdq.cli.plan_options import make_rules_option, target_option
from qdq.files.output import check_output
from qdq.graph.float_types import SHORT_TYPES
from qdq.graph.loader import load
from qdq.graph.source import Source
from qdq.pipeline.float_extremes import measure_extremes
from qdq.precision.cast_model import CastModel, cast
from qdq.reports.cast_sections import cast_sections
from qdq.rewriting.model_file import plan_external_copies, save
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import FLOAT_SET


class CastArguments(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    output: Path
    force: bool
    to: str
    rule_sets: tuple[str, ...]
    targets: tuple[str, ...]
    keep_fp32: tuple[str, ...]
    allow_unmatched: bool
    ranges: Path | None
    data: DataOptions
    scales: str
    io: str
    layout: str


@click.command("cast")
@click.argument("model", type=FILE)
@output_options
@click.option(
    "--to",
    type=click.Choice(list(SHORT_TYPES)),
    default="fp16",
    show_default=True,
    help="The float type.",
)
@make_rules_option(FLOAT_SET)
@target_option
@click.option(
    "--keep-fp32",
    multiple=True,
    metavar="NODES",
    help="Compute nodes in FP32: a glob of names, op:OPERATOR or range:FIRST..LAST; repeat for "
    "several.",
)
@click.option("--allow-unmatched", is_flag=True, help="Accept globs that match nothing.")
@extremes_option
@data_options
@scales_option
@io_option
@format_option
@collect_options(CastArguments)
def command(options: CastArguments) -> None:
    """Write MODEL, float or with Q/DQ pairs, in FP16 or BF16.

    Rules with 'then: keep-fp32' decide what computes in FP32 all the same, and so do the values
    that --data and --ranges show. Casts are only where types meet. A model that was cast already is
    written unchanged.

    \b
    Example:
      qdq cast resnet50.onnx -o resnet50.fp16.onnx
      qdq cast resnet50.int8.onnx -o resnet50.int8.fp16.onnx --ranges resnet50.ranges
      qdq cast resnet50.onnx -o resnet50.fp16.onnx --data samples/ --samples 8
      qdq cast bert.onnx -o bert.bf16.onnx --to bf16 --keep-fp32 '/pooler/*'
    """
    check_output(options.output, options.force)
    result = _cast(options)
    save(result.model, result.output_source, options.output, options.force)
    print_summary(options.layout, result.report, list(cast_sections(result.report)))
    if options.layout == "text":
        print_written([options.output])


def _cast(options: CastArguments) -> CastModel:
    source = load(options.model)
    plan_external_copies(source, options.output, options.force)
    return cast(
        source,
        options.to,
        rules=load_rules(options.rule_sets or FLOAT_SET),
        targets=options.targets,
        keep_fp32=options.keep_fp32,
        allow_unmatched=options.allow_unmatched,
        amax=_find_extremes(source, options),
        scales=options.scales,
        io=options.io,
    )


def _find_extremes(source: Source, options: CastArguments) -> dict[str, float]:
    """Return the largest absolute value of each tensor, by the ranges and on the samples."""
    extremes = dict(read_extremes(options.ranges))
    if options.data.source is None:
        return extremes
    measured = measure_extremes(source, options.data.source, batch=options.data.batch)
    for name, amax in measured.items():
        extremes[name] = max(amax, extremes.get(name, 0.0))
    return extremes
