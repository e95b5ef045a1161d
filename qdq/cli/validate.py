"""`qdq validate`: accuracy, and the promises of the plan in TensorRT's engines."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.data_options import DataOptions, labelled_data_options
from qdq.cli.file_choices import cast_command, fix_input_shapes
from qdq.cli.messages import print_record, print_written
from qdq.cli.options import (
    FILE,
    collect_options,
    format_option,
    ort_library_option,
)
from qdq.cli.plan_options import parse_profiles, parse_targets, shapes_option, target_option
from qdq.cli.progress import progress
from qdq.cli.report_options import check_reports, report_option, write_reports
from qdq.cli.threshold_options import metric_option, read_metric, threshold_options
from qdq.cli.validation_steps import list_validation_steps
from qdq.cli.viewer import open_model, open_option, require_viewer
from qdq.errors import UsageError
from qdq.files.output import written_together
from qdq.graph.loader import load
from qdq.graph.shape_profiles import optimal_shapes
from qdq.metrics.metric import Metric
from qdq.pipeline.file_choice import (
    FileChoice,
    FileCommands,
    FilePair,
    can_choose_files,
    choose_files,
)
from qdq.quantized.model import QuantizedModel
from qdq.reports.command_pages import validation_page
from qdq.reports.report import Report, full_sections, report_sections
from qdq.reports.report_files import ReportContent
from qdq.reports.validation_result import validation_result_section
from qdq.validation.validator import Thresholds, Validation, misses, validate


class ValidateOptions(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    quantized: Path
    data: DataOptions
    targets: tuple[str, ...]
    shapes: tuple[str, ...]
    layers: tuple[Path, ...]
    allow_fp16: bool
    ort_library: tuple[Path, ...]
    metric: str | None
    thresholds: Thresholds
    report: tuple[Path, ...]
    force: bool
    layout: str
    is_opened: bool

    def check(self) -> None:
        """Raise UsageError where nothing is validated, or the report could not be written."""
        if not self.data.source and not self.targets and not self.layers:
            raise UsageError(
                "nothing to validate. Pass --data or --images for accuracy, --target for engines, "
                "or --layers for an existing engine."
            )
        check_reports(self.report, self.force)
        if self.is_opened:
            require_viewer()


@click.command("validate")
@click.argument("model", metavar="FLOAT", type=FILE)
@click.argument("quantized", type=FILE)
@labelled_data_options
@target_option
@shapes_option
@click.option(
    "--layers",
    multiple=True,
    type=FILE,
    metavar="JSON",
    help="Layers of an engine built from QUANTIZED, as trtexec --exportLayerInfo writes them; "
    "repeat for several.",
)
@click.option(
    "--allow-fp16",
    is_flag=True,
    help="Predict engines that TensorRT 10 and earlier build with --fp16; "
    "TensorRT 11 uses the types in the model.",
)
@ort_library_option
@metric_option
@threshold_options
@report_option
@click.option("--force", is_flag=True, help="Replace reports that exist.")
@open_option
@format_option
@click.pass_context
@collect_options(ValidateOptions)
def command(ctx: click.Context, options: ValidateOptions) -> None:
    """Compare QUANTIZED with the FLOAT model it was made from.

    With --data: the error of every output in ONNX Runtime, and with --metric the score of both
    models. With --target: the engines that
    TensorRT-RTX compiles, without a GPU, and each promise of the plan that they broke. A trt
    target is built and run where TensorRT and a GPU are present (qdq's tests do not cover that
    path), else predicted from TensorRT's documented fusions. With --layers: an existing engine
    against the plan.

    Exit 1 if a promise is broken, a build is refused or a threshold is missed.

    \b
    Example:
      qdq validate resnet50.onnx resnet50.int8.onnx --data samples/ --target rtx:sm86 --min-snr 20
      qdq validate net.onnx net.int8.onnx --images val/ --preprocess imagenet --metric top1
      qdq validate net.onnx net.int8.onnx --data samples/ --metric metrics.py:f1 --max-drop 0.5%
      qdq validate resnet50.onnx resnet50.int8.onnx --target trt:sm80 --layers engine.json
    """
    options.check()
    has_data = options.data.source is not None
    metric = read_metric(ctx, options.metric, has_data, options.thresholds)
    validation = _validate(options, metric)
    report = Report(
        validation=validation,
        misses=misses(validation, options.thresholds),
        file_choices=_choose_files(options, validation) or msgspec.UNSET,
    )
    _write_reports(options, report)
    result = validation_result_section(report, options.quantized.name, options.thresholds)
    print_record(options.layout, report, [result, *report_sections(report)])
    if options.layout == "text":
        print_written(options.report, list_validation_steps(ctx, report))
    if options.is_opened:
        open_model(options.quantized)
    ctx.exit(1 if report.misses else 0)


def _write_reports(options: ValidateOptions, report: Report) -> None:
    content = ReportContent(
        report, lambda: full_sections(report), lambda: validation_page(report, options.quantized)
    )
    with written_together():
        write_reports(options.report, content)


def _validate(options: ValidateOptions, metric: Metric | None) -> Validation:
    with progress("validating") as advance:
        return validate(
            options.model,
            options.quantized,
            data=options.data.source,
            targets=parse_targets(options.targets),
            shapes=optimal_shapes(parse_profiles(options.shapes)),
            batch=options.data.batch,
            progress=advance,
            layers=options.layers,
            allow_fp16=options.allow_fp16,
            ort_libraries=options.ort_library,
            metric=metric,
        )


def _choose_files(options: ValidateOptions, validation: Validation) -> tuple[FileChoice, ...]:
    """Return how the quantized file compares with FP16 files on each rtx target."""
    targets = parse_targets(options.targets)
    if not can_choose_files(targets):
        return ()
    source = load(options.model)
    shapes = optimal_shapes(parse_profiles(options.shapes))
    commands = FileCommands(cast_command(options.model), cast_command(options.quantized))
    pair = FilePair(
        source,
        QuantizedModel(options.quantized).source,
        commands,
        validation.engines[0].types,
        fix_input_shapes(source, shapes, options.data),
    )
    return choose_files(pair, targets, validation.engines)
