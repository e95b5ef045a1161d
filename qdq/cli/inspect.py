"""`qdq inspect`: what is in a model file."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.messages import print_record
from qdq.cli.options import FILE, format_option
from qdq.quantized.inspection import inspect
from qdq.reports.inspection_sections import inspection_sections


@click.command("inspect")
@click.argument("model", type=FILE)
@click.option("--layers", is_flag=True, help="Also print a line for each weighted layer.")
@format_option
def command(model: Path, layers: bool, layout: str) -> None:
    """Print what is in MODEL, float or quantized, by any tool.

    That is: inputs, outputs, operators, the precision of the layers that multiply, pairs, opset, IR
    version, producer, sizes, and what qdq recorded. Nothing is run. JSON has the layers always.

    \b
    Example:
      qdq inspect resnet50.int8.onnx
      qdq inspect resnet50.int8.onnx --layers
      qdq inspect resnet50.onnx --format json
    """
    inspection = inspect(model)
    print_record(layout, inspection, list(inspection_sections(inspection, layers)))
