"""`qdq ranges`: files of ranges."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.options import FILE, output_option
from qdq.errors import UsageError
from qdq.givenfiles import CACHE, LAYOUTS, given_bytes, read_given
from qdq.saving import check_output, write_whole
from qdq.trtcache import VERSION


@click.group("ranges", no_args_is_help=False)
def command() -> None:
    """Turn files of ranges into others.

    \b
    Example:
      qdq ranges export model.scales.json --format tensorrt-cache -o model.cache
    """


@command.command("export")
@click.argument("source", type=FILE)
@click.option("--format", "layout", type=click.Choice(LAYOUTS), required=True, help="What to write; --ranges reads each of them again.")
@click.option(
    "--tensorrt-version", "version", metavar="VERSION", help=f"For the first line of a cache.  [default: that of SOURCE if it is one, else {VERSION}]"
)
@output_option
def _export(source: Path, layout: str, version: str | None, output: Path, force: bool) -> None:
    """Write the ranges of the activations in SOURCE as a TensorRT calibration cache, YAML or JSON.

    SOURCE is what --ranges reads: scales of 'qdq calibrate', a calibration cache, YAML or JSON by hand, or a
    quantized model (.onnx). Ranges of weights are not in such files; who reads them takes the largest weights.

    \b
    Example:
      qdq ranges export model.scales.json --format tensorrt-cache -o model.cache
      qdq ranges export model.int8.onnx --format yaml -o model.ranges.yaml
    """
    check_output(output, (source,), force)
    if version and layout != CACHE:
        raise UsageError("--tensorrt-version is for the first line of a cache; pass --format tensorrt-cache")
    given = read_given(source)
    write_whole(output, given_bytes(given, layout, version))
    click.echo(f"wrote the ranges of {len(given.by_tensor)} tensors to {output}")
