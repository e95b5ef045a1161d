"""`qdq sensitivity`: which part of a network makes the error of its INT8."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.calibration.range_sources import read_given
from qdq.cli.data_options import DataOptions, labelled_data_options
from qdq.cli.messages import name_files_in_errors, print_record, print_written
from qdq.cli.options import (
    FILE,
    OUTPUT_FILE,
    collect_options,
    force_option,
    format_option,
    is_on_command_line,
    ort_library_option,
)
from qdq.cli.plan_options import PlanOptions, plan_options, read_rule_sets
from qdq.cli.progress import progress
from qdq.cli.ranges_options import (
    MethodOptions,
    list_observed_files,
    method_options,
    ranges_option,
)
from qdq.cli.report_options import check_reports, report_option, write_reports
from qdq.cli.sensitivity_steps import list_float_steps, list_sensitivity_steps
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic, written_together
from qdq.graph.float_types import SHORT_TYPES
from qdq.graph.loader import load
from qdq.graph.source import Source
from qdq.metrics.metric_files import load_metric
from qdq.observers.collection import Observing
from qdq.pipeline.float_sensitivity import FloatSensitivity, measure_float_sensitivity
from qdq.pipeline.sensitivity_analysis import DEFAULT_MEASURED, Sensitivity, measure_sensitivity
from qdq.ranges.known_ranges import KnownRanges
from qdq.reports.command_pages import float_sensitivity_page, sensitivity_page
from qdq.reports.model_graphs import graph_float, graph_model, graph_plan
from qdq.reports.node_facts import collect_float_facts, collect_sensitivity_facts
from qdq.reports.page_graph import PageGraph
from qdq.reports.report_files import ReportContent, check_report_path
from qdq.reports.sensitivity_result import float_result_section, sensitivity_result_section
from qdq.reports.sensitivity_sections import (
    check_chart_path,
    float_sensitivity_sections,
    sensitivity_chart,
    sensitivity_sections,
)
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import FLOAT_SET
from qdq.sensitivity.layer_groups import GROUPINGS, LAYER

#: Options of plan and calibration, which have no effect on the pairs of QUANTIZED.
_PLAN_OPTIONS = {
    "rule_sets": "--rules",
    "targets": "--target",
    "leave_float": "--leave-float",
    "allow_unmatched": "--allow-unmatched",
    "shapes": "--shapes",
    "method": "--method",
    "weights": "--weights",
    "ranges": "--ranges",
}

_DEFAULT_TOP = 20

_plot_option = click.option(
    "--plot", type=OUTPUT_FILE, metavar="FILE.svg", help="Also write a chart of the worst groups."
)
_float_option = click.option(
    "--float",
    "short_type",
    type=click.Choice(list(SHORT_TYPES)),
    help="Rank the nodes by the noise of this type instead of INT8: each one rounded alone, of the "
    "N (--top) with the most extreme values.",
)


class SensitivityOptions(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    quantized: Path | None
    data: DataOptions
    plan: PlanOptions
    method: MethodOptions
    ranges: Path | None
    by: str
    metric: str | None
    measure: int | None
    top: int
    plot: Path | None
    short_type: str | None
    ort_library: tuple[Path, ...]
    report: tuple[Path, ...]
    force: bool
    layout: str

    @property
    def outputs(self) -> list[Path]:
        """The files that the command writes."""
        return [*filter(None, (self.plot,)), *self.report]

    def check(self, ctx: click.Context) -> None:
        """Raise UsageError for options without effect, and for outputs that cannot be written."""
        if self.data.source is None:
            raise UsageError("sensitivity is measured on samples. Pass --data or --images.")
        if self.plot:
            check_chart_path(self.plot)
        for path in self.report:
            check_report_path(path)
        if self.short_type and (self.quantized or self.metric or self.plot):
            raise UsageError(
                "--float ranks the nodes of FLOAT by noise alone. Drop QUANTIZED, --metric and "
                "--plot; --report draws the noise."
            )
        if self.plot:
            check_output(self.plot, self.force)
        check_reports(self.report, self.force)
        if self.quantized is None:
            return
        for name, option in _PLAN_OPTIONS.items():
            if is_on_command_line(ctx, name):
                raise UsageError(
                    f"{option} has no effect: QUANTIZED has its pairs and scales already. "
                    f"Drop {option}, or pass FLOAT alone."
                )


@click.command("sensitivity")
@click.argument("model", metavar="FLOAT", type=FILE)
@click.argument("quantized", metavar="[QUANTIZED]", type=FILE, required=False)
@labelled_data_options
@plan_options
@method_options
@ranges_option
@click.option(
    "--by",
    type=click.Choice(GROUPINGS),
    default=LAYER,
    show_default=True,
    help="What is quantized alone: a layer, a tensor with all its readers, or a block between "
    "tensors that everything passes through.",
)
@click.option(
    "--metric",
    metavar="NAME|FILE",
    help="Rank by the drop of a score instead of noise: top1, or a function of yours as "
    "FILE.py:FUNCTION (qdq docs metrics).",
)
@click.option(
    "--measure",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Measure with N of the samples, evenly spaced.  [default: {DEFAULT_MEASURED}; "
    "with --metric all]",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=_DEFAULT_TOP,
    show_default=True,
    metavar="N",
    help="Show the N worst groups in text and chart; JSON has all.",
)
@_plot_option
@_float_option
@ort_library_option
@report_option
@force_option
@format_option
@click.pass_context
@collect_options(SensitivityOptions)
def command(ctx: click.Context, options: SensitivityOptions) -> None:
    """Rank the layers of FLOAT by the error that their INT8 makes.

    The model is planned and calibrated as 'qdq quantize' does. Then each layer is measured with its
    pairs alone, and the worst ones released from the whole plan. With QUANTIZED, which any tool may
    have made, its own pairs are measured, and its error is followed from layer to layer.

    \b
    Example:
      qdq sensitivity yolox.onnx --images photos/ --preprocess yolo --samples 32 --plot yolox.svg
      qdq sensitivity net.onnx --data samples/ --by block --format json
      qdq sensitivity net.onnx --data samples/ --metric top1
      qdq sensitivity net.onnx --data samples/ --ranges net.ranges --rules tensorrt-fp8
      qdq sensitivity net.onnx net.int8.onnx --data samples/
      qdq sensitivity net.onnx --data samples/ --float fp16
    """
    options.check(ctx)
    if options.short_type:
        _rank_floats(ctx, options, options.short_type)
        return
    known_ranges = None if options.ranges is None else read_given(options.ranges)
    named_files = list_observed_files(options.ranges, known_ranges)
    with name_files_in_errors(*named_files):
        sensitivity = _measure(options, known_ranges)
    _write_outputs(options, sensitivity)
    _print_sensitivity(ctx, options, sensitivity)


def _print_sensitivity(
    ctx: click.Context, options: SensitivityOptions, sensitivity: Sensitivity
) -> None:
    sections = sensitivity_sections(sensitivity, options.top)
    print_record(options.layout, sensitivity, [sensitivity_result_section(sensitivity), *sections])
    if options.layout == "text":
        print_written(options.outputs, list_sensitivity_steps(ctx, sensitivity))


def _measure(options: SensitivityOptions, known_ranges: KnownRanges | None) -> Sensitivity:
    """Return the sensitivity, and show the progress."""
    metric = None if options.metric is None else load_metric(options.metric)
    if options.data.source is None:
        raise UsageError("sensitivity is measured on samples. Pass --data or --images.")
    source = load(options.model)
    request = options.plan.parse(read_rule_sets(options.plan.rule_sets))
    with (
        progress("calibrating") as advance,
        progress("measuring", unit="runs") as advance_runs,
    ):
        return measure_sensitivity(
            source,
            options.data.source,
            quantized=options.quantized,
            rules=request.rules,
            targets=request.targets,
            method=options.method.method,
            weights=options.method.weights,
            leave_float=request.leave_float,
            batch=options.data.batch,
            allow_unmatched=request.allow_unmatched,
            profiles=request.profiles,
            given=known_ranges,
            by=options.by,
            metric=metric,
            measured=options.measure,
            observing=Observing(ort_libraries=options.ort_library),
            progress=advance,
            measuring_progress=advance_runs,
        )


def _rank_floats(ctx: click.Context, options: SensitivityOptions, short_type: str) -> None:
    """Rank the nodes by the noise of a 16-bit type, write the reports and print the result."""
    if options.data.source is None:
        raise UsageError("sensitivity is measured on samples. Pass --data or --images.")
    rules = load_rules(options.plan.rule_sets or FLOAT_SET)
    source = load(options.model)
    floats = measure_float_sensitivity(
        source, options.data.source, short_type, rules=rules, most=options.top
    )
    content = ReportContent(
        floats,
        lambda: list(float_sensitivity_sections(floats)),
        lambda: float_sensitivity_page(floats, _graph_floats(source, floats)),
    )
    with written_together():
        write_reports(options.report, content)
    sections = [float_result_section(floats), *float_sensitivity_sections(floats)]
    print_record(options.layout, floats, sections)
    if options.layout == "text":
        print_written(options.report, list_float_steps(ctx, floats))


def _graph_floats(source: Source, floats: FloatSensitivity) -> PageGraph | None:
    return graph_float(source, floats.to, floats.kept, collect_float_facts(floats))


def _write_outputs(options: SensitivityOptions, sensitivity: Sensitivity) -> None:
    """Write the chart and the report where the options name files for them."""
    with written_together():
        if options.plot:
            chart = sensitivity_chart(sensitivity, options.top)
            write_atomic(options.plot, chart.encode())
        write_reports(options.report, _make_content(options, sensitivity))


def _make_content(options: SensitivityOptions, sensitivity: Sensitivity) -> ReportContent:
    return ReportContent(
        sensitivity,
        lambda: sensitivity_sections(sensitivity, options.top),
        lambda: sensitivity_page(sensitivity, _make_graph(options, sensitivity), options.top),
    )


def _make_graph(options: SensitivityOptions, sensitivity: Sensitivity) -> PageGraph | None:
    """Return the network of the pairs that were measured: of QUANTIZED, else of the plan."""
    facts = collect_sensitivity_facts(sensitivity)
    if options.quantized is not None:
        return graph_model(options.quantized, facts)
    request = options.plan.parse(read_rule_sets(options.plan.rule_sets))
    return graph_plan(load(options.model), request, facts)
