"""`qdq validate`: is it accurate, and does TensorRT keep the plan's promises?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qdq.cli.options import (
    FILE,
    data_option,
    format_option,
    profiles_of,
    shapes_option,
    show,
    target_option,
    targets_of,
    thresholds_option,
)
from qdq.cli.progress import progress
from qdq.data.feeds import data_files
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic
from qdq.graph.shape_profiles import optimal_shapes
from qdq.reports.report import Report, check_report_path, render, report_sections
from qdq.validation.validator import Thresholds, misses, validate


@click.command("validate")
@click.argument("model", metavar="FLOAT", type=FILE)
@click.argument("quantized", type=FILE)
@data_option
@target_option
@shapes_option
@click.option(
    "--layers",
    multiple=True,
    type=FILE,
    metavar="JSON",
    help="Layers of an engine built from QUANTIZED, as trtexec --exportLayerInfo writes them; repeat.",
)
@click.option(
    "--allow-fp16",
    is_flag=True,
    help="Predict what TensorRT 10 and earlier build with --fp16; 11 goes by the types in the model.",
)
@thresholds_option
@click.option(
    "--report", type=FILE, metavar="FILE", help="Also write a report: .json, .md or .txt."
)
@click.option("--force", is_flag=True, help="Replace the report if it exists.")
@format_option
@click.pass_context
def command(
    ctx: click.Context, /, model: Path, quantized: Path, report: Path | None, **given: Any
) -> None:
    """Compare QUANTIZED with the FLOAT model it was made from.

    With --data: the error of every output in ONNX Runtime. With --target: the engines that
    TensorRT-RTX compiles, with no GPU, and each promise of the plan that they broke. A trt
    target is TensorRT proper: built and run where it and a GPU are present (untested by qdq's own
    suite, which has none), else predicted from its documented fusions. With --layers: a real
    engine against the plan.

    Exit 1 if a promise is broken, a build refused or a threshold missed.

    \b
    Example:
      qdq validate resnet50.onnx resnet50.int8.onnx --data samples/ --target rtx:sm86 --min-snr 20
      qdq validate resnet50.onnx resnet50.int8.onnx --target trt:sm80 --layers engine.json
    """
    if not given["data"] and not given["targets"] and not given["layers"]:
        raise UsageError(
            "nothing to validate: pass --data or --images for accuracy, --target for engines, --layers for an engine of yours, or several"
        )
    if report:
        check_report_path(report)
        check_output(
            report, (model, quantized, *given["layers"], *data_files(given["data"])), given["force"]
        )
    with progress("validating") as advance:
        validation = validate(
            model, quantized, data=given["data"], batch=given["batch"], targets=targets_of(given["targets"]),
            shapes=optimal_shapes(profiles_of(given["shapes"])), progress=advance, layers=given["layers"], allow_fp16=given["allow_fp16"],
        )  # fmt: skip
    thresholds = Thresholds(given["min_snr"], given["min_cosine"], given["min_top1"])
    made = Report(validation=validation, misses=misses(validation, thresholds))
    if report:
        write_atomic(report, render(made, report.suffix).encode())
    show(given["layout"], made, report_sections(made))
    ctx.exit(1 if made.misses else 0)
