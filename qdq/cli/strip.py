"""`qdq strip`: the float model of a quantized model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import onnx

from qdq.calibration.range_sources import CACHE, JSON, YAML, encode_given_ranges, read_model_ranges
from qdq.cli.messages import join_paths, print_summary_line
from qdq.cli.options import FILE, OUTPUT_FILE, output_options
from qdq.files.output import check_output, write_atomic, written_together
from qdq.graph.bodies import all_graphs, all_nodes
from qdq.graph.loader import load
from qdq.graph.pairs import QdqPair, find_pairs, stored_tensors
from qdq.graph.quantized_operators import is_quantized_operator
from qdq.quantized.stripper import strip
from qdq.rewriting.model_file import save

#: The format of a file of ranges by its suffix. Others are YAML.
_LAYOUTS = {".cache": CACHE, ".json": JSON}


@click.command("strip")
@click.argument("model", type=FILE)
@click.option(
    "--ranges",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="Also write the ranges of its activations: a .cache as TensorRT does, .json, else YAML.",
)
@output_options
def command(model: Path, ranges: Path | None, output: Path, force: bool) -> None:
    """Write MODEL without its Q/DQ pairs. A model that qdq quantized is restored byte for byte.

    Where MODEL stores quantized weights, the result has their dequantized values.

    \b
    Example:
      qdq strip resnet50.int8.onnx -o resnet50.float.onnx
      qdq strip resnet50.int8.onnx -o resnet50.float.onnx --ranges resnet50.ranges.yaml
    """
    check_output(output, force)
    written = [output]
    if ranges:
        check_output(ranges, force)
        written.append(ranges)
    source = load(model)
    float_model = strip(source)
    model_ranges = read_model_ranges(model) if ranges else None
    with written_together():
        save(float_model, source, output, force)
        if ranges and model_ranges:
            layout = _LAYOUTS.get(ranges.suffix, YAML)
            write_atomic(ranges, encode_given_ranges(model_ranges, layout))
    summary = _summarize(source.model.graph, float_model.graph)
    print_summary_line(f"{summary}; wrote {join_paths(written)}")


def _summarize(quantized_graph: onnx.GraphProto, float_graph: onnx.GraphProto) -> str:
    """Return how many pairs were removed and how many operators were converted."""
    total = _count_pairs(quantized_graph)
    removed = total - _count_pairs(float_graph)
    summary = f"removed {removed} of {total} pairs"
    dequantized = _count_stored_pairs(quantized_graph) - _count_stored_pairs(float_graph)
    if dequantized:
        summary = f"{summary}, stored the dequantized values of {dequantized} of them"
    converted = 0
    for _, node in all_nodes(quantized_graph):
        if is_quantized_operator(node):
            converted += 1
    if converted:
        summary = f"{summary}, converted {converted} quantized operators to float ones"
    return summary


def _count_pairs(main_graph: onnx.GraphProto) -> int:
    """Return the number of pairs in a graph and its bodies."""
    return sum(1 for _ in _all_pairs(main_graph))


def _count_stored_pairs(main_graph: onnx.GraphProto) -> int:
    """Return the number of pairs whose quantized values are stored."""
    return sum(pair.q is None for pair in _all_pairs(main_graph))


def _all_pairs(main_graph: onnx.GraphProto) -> Iterator[QdqPair]:
    stored: set[str] = set()
    for graph in all_graphs(main_graph):
        stored.update(stored_tensors(graph))
        yield from find_pairs(graph, stored)
