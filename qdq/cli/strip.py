"""`qdq strip`: the float model back."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.options import FILE, output_option
from qdq.loading import load
from qdq.pairs import find_pairs
from qdq.quantizing import save
from qdq.saving import check_output
from qdq.stripping import strip


@click.command("strip")
@click.argument("model", type=FILE)
@output_option
def command(model: Path, output: Path, force: bool) -> None:
    """Write MODEL without its Q/DQ pairs; one that qdq wrote comes back byte for byte.

    \b
    Example:
      qdq strip resnet50.int8.onnx -o resnet50.float.onnx
    """
    check_output(output, (model,), force)
    source = load(model)
    stripped = strip(source)
    save(stripped, source, output, force)
    before, after = len(find_pairs(source.model.graph)), len(find_pairs(stripped.graph))
    click.echo(f"took out {before - after} of {before} pairs; wrote {output}")
