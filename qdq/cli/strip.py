"""`qdq strip`: the float model back."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.calibration.range_sources import CACHE, JSON, YAML, encode_given_ranges, read_model_ranges
from qdq.cli.options import FILE, output_option
from qdq.files.output import check_output, write_atomic
from qdq.graph.bodies import all_nodes
from qdq.graph.loader import load
from qdq.graph.pairs import find_pairs
from qdq.graph.quantized_operators import is_quantized_operator
from qdq.quantized.stripper import strip
from qdq.rewriting.model_file import save

#: What the suffix of a file of ranges says; others are YAML.
_LAYOUTS = {".cache": CACHE, ".json": JSON}


@click.command("strip")
@click.argument("model", type=FILE)
@click.option(
    "--ranges",
    type=FILE,
    metavar="FILE",
    help="Also write the ranges of its activations: .cache as TensorRT does, .json, else YAML.",
)
@output_option
def command(model: Path, ranges: Path | None, output: Path, force: bool) -> None:
    """Write MODEL without its Q/DQ pairs; one that qdq wrote comes back byte for byte.

    \b
    Example:
      qdq strip resnet50.int8.onnx -o resnet50.float.onnx
      qdq strip resnet50.int8.onnx -o resnet50.float.onnx --ranges resnet50.ranges.yaml
    """
    check_output(output, (model,), force)
    if ranges:
        check_output(ranges, (model, output), force)
    source = load(model)
    stripped, given = strip(source), read_model_ranges(model) if ranges else None
    save(stripped, source, output, force)
    if ranges and given:
        write_atomic(ranges, encode_given_ranges(given, _LAYOUTS.get(ranges.suffix, YAML)))
    before, after = len(find_pairs(source.model.graph)), len(find_pairs(stripped.graph))
    operators = sum(is_quantized_operator(node) for _, node in all_nodes(source.model.graph))
    converted = f", turned {operators} quantized operators into float ones" if operators else ""
    click.echo(
        f"took out {before - after} of {before} pairs{converted}; wrote {output}{f', {ranges}' if ranges else ''}"
    )
