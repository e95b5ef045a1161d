"""`qdq ranges`: files of ranges."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.calibration.methods import DEFAULT_METHOD, parse_method
from qdq.calibration.range_sources import (
    CACHE,
    EXPORT_FORMATS,
    encode_given_ranges,
    read_exportable_ranges,
)
from qdq.cli.messages import join_paths, print_summary, print_summary_line, print_written
from qdq.cli.options import FILE, output_options
from qdq.errors import DataError, UsageError
from qdq.files.output import check_output, write_atomic
from qdq.ranges.range_file import read_ranges, write_ranges
from qdq.ranges.tensor_ranges import merge
from qdq.ranges.tensorrt_cache import CACHE_VERSION
from qdq.reports.scales_sections import ranges_summary


@click.group("ranges", no_args_is_help=False)
def command() -> None:
    """Merge and export files of ranges, observed or given.

    \b
    Example:
      qdq ranges merge part*.ranges -o all.ranges
      qdq ranges export model.scales.json --format tensorrt-cache -o model.cache
    """


@command.command("merge")
@click.argument("parts", type=FILE, nargs=-1, required=True)
@output_options
def _merge(parts: tuple[Path, ...], output: Path, force: bool) -> None:
    """Write the ranges over all samples of PARTS: the same bytes as one run over all samples.

    PARTS are files that 'qdq calibrate --shard' wrote, or '--save-ranges' for different data. Some
    parts may be merged now and the others later.

    \b
    Example:
      qdq ranges merge part1.ranges part2.ranges -o all.ranges
      qdq calibrate resnet50.onnx resnet50.plan.yaml --ranges all.ranges -o resnet50.scales.json
    """
    check_output(output, force)
    ranges = [read_ranges(part) for part in parts]
    try:
        merged = merge(ranges)
    except DataError as error:
        raise DataError(f"{join_paths(parts)}: {error}") from error
    write_ranges(output, merged)
    print_summary("text", None, [ranges_summary(merged)])
    print_written([output])


@command.command("export")
@click.argument("source", type=FILE)
@click.option(
    "--format",
    "layout",
    type=click.Choice(EXPORT_FORMATS),
    required=True,
    help="Format to write; --ranges reads all of them.",
)
@click.option(
    "--tensorrt-version",
    "version",
    metavar="VERSION",
    help="Version in the first line of a cache.  "
    f"[default: that of SOURCE if it is a cache, else {CACHE_VERSION}]",
)
@click.option(
    "--method",
    metavar="METHOD",
    help="Method that chooses ranges from observed ones, as for 'qdq calibrate'.  "
    f"[default: {DEFAULT_METHOD}]",
)
@output_options
def _export(
    source: Path, layout: str, version: str | None, method: str | None, output: Path, force: bool
) -> None:
    """Write the ranges of the activations in SOURCE as a TensorRT calibration cache, YAML or JSON.

    SOURCE is any file that --ranges reads: observed ranges, scales of 'qdq calibrate', a
    calibration cache, YAML or JSON, or a quantized model (.onnx). The files hold no ranges of
    weights; readers take the largest weights.

    \b
    Example:
      qdq ranges export model.scales.json --format tensorrt-cache -o model.cache
      qdq ranges export all.ranges --format tensorrt-cache --method entropy -o model.cache
      qdq ranges export model.int8.onnx --format yaml -o model.ranges.yaml
    """
    check_output(output, force)
    if version and layout != CACHE:
        raise UsageError(
            "--tensorrt-version is for the first line of a cache. Pass --format tensorrt-cache."
        )
    ranges = read_exportable_ranges(source, parse_method(method) if method else None)
    write_atomic(output, encode_given_ranges(ranges, layout, version))
    print_summary_line(f"wrote the ranges of {len(ranges.by_tensor)} tensors to {output}")
