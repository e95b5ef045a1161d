"""`qdq ranges`: files of ranges."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.options import FILE, output_option
from qdq.errors import DataError
from qdq.rangefile import read_ranges, write_ranges
from qdq.ranges import merge
from qdq.reporting import ranges_summary, sections_text
from qdq.saving import check_output


@click.group("ranges")
def command() -> None:
    """Work on files of ranges: what tensors were seen to hold, or are said to.

    \b
    Example:
      qdq ranges merge part*.ranges -o all.ranges
    """


@command.command("merge")
@click.argument("parts", type=FILE, nargs=-1, required=True)
@output_option
def merge_command(parts: tuple[Path, ...], output: Path, force: bool) -> None:
    """Write the ranges of all samples that the PARTS saw: the same bytes as one run over all of them gives.

    PARTS are what 'qdq calibrate --shard' wrote, or '--save-ranges' for different data; some parts may be
    merged now and the others later.

    \b
    Example:
      qdq ranges merge part1.ranges part2.ranges -o all.ranges
      qdq calibrate resnet50.onnx resnet50.plan.yaml --ranges all.ranges -o resnet50.scales.json
    """
    check_output(output, parts, force)
    several = [read_ranges(part) for part in parts]
    try:
        merged = merge(several)
    except DataError as error:
        raise DataError(f"{', '.join(map(str, parts))}: {error}") from error
    write_ranges(output, merged)
    click.echo(sections_text([ranges_summary(merged)]), nl=False)
    click.echo(f"\nwrote {output}")
