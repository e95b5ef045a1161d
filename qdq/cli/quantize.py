"""`qdq quantize`: the main job."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import click
import msgspec

from qdq.cli.data_options import DataOptions, labelled_data_options
from qdq.cli.file_choices import QuantizedFiles
from qdq.cli.fleet import FleetCommand
from qdq.cli.float_options import float_options
from qdq.cli.messages import name_files_in_errors, print_record, print_written
from qdq.cli.model_options import existing_option, store_weights_option
from qdq.cli.next_steps import list_next_steps, print_wrong
from qdq.cli.observing_options import observing_options
from qdq.cli.options import FILE, collect_options, fleet_output_options, format_option
from qdq.cli.partial_options import BUDGET_THRESHOLDS, PartialArguments, partial_options
from qdq.cli.plan_options import PlanOptions, parse_profiles, plan_options, read_rule_sets
from qdq.cli.progress import progress, resumable
from qdq.cli.ranges_options import (
    MethodOptions,
    list_observed_files,
    method_options,
    ranges_option,
    read_known_ranges,
    save_ranges_option,
)
from qdq.cli.report_options import check_reports, report_option, write_reports
from qdq.cli.rule_files import write_rule_files
from qdq.cli.threshold_options import (
    metric_option,
    read_metric,
    refuse_unused_thresholds,
    threshold_options,
)
from qdq.cli.verbosity import is_quiet
from qdq.cli.viewer import open_model, open_option, require_viewer
from qdq.data.feeds import open_feeds
from qdq.errors import ModelError, UsageError
from qdq.files.output import check_output, written_together
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.shape_profiles import Shape, optimal_shapes, require_shapes
from qdq.graph.source import Source
from qdq.metrics.metric import Metric
from qdq.observers.collection import Observing
from qdq.pipeline.buildable import RULE_FILE_SUFFIX
from qdq.pipeline.float_options import FloatOptions
from qdq.pipeline.partial_rule_file import SENSITIVE_FILE_SUFFIX
from qdq.pipeline.quantize_model import Quantized, quantize
from qdq.pipeline.quantize_request import BuildOptions
from qdq.planning.planner import find_quantized_nodes
from qdq.quantizer import FORMATS
from qdq.ranges.known_ranges import KnownRanges
from qdq.ranges.range_file import write_ranges
from qdq.reports.page import Page
from qdq.reports.report import Report, full_sections, report_sections
from qdq.reports.report_files import ReportContent
from qdq.reports.result_section import result_section
from qdq.reports.sections import Section
from qdq.rewriting.model_file import plan_external_copies, save
from qdq.rules.rule import RuleSet
from qdq.rules.shipped import default_rule_sets
from qdq.sensitivity.budget import Budget
from qdq.sensitivity.partial_result import PartialResult
from qdq.validation.accuracy import Accuracy, compare_outputs
from qdq.validation.validator import Thresholds, Validation, misses, validate


class QuantizeOptions(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    output: Path
    force: bool
    data: DataOptions
    plan: PlanOptions
    method: MethodOptions
    ranges: Path | None
    observing: Observing
    save_ranges: Path | None
    existing: str
    report: tuple[Path, ...]
    validate: bool
    until_it_builds: bool
    metric: str | None
    thresholds: Thresholds
    partial: PartialArguments
    store_weights: str
    floats: FloatOptions
    is_opened: bool
    layout: str

    @property
    def rule_file(self) -> Path:
        """The file of the rule that --until-it-builds writes, beside the output."""
        return self.output.with_suffix(RULE_FILE_SUFFIX)

    @property
    def sensitive_file(self) -> Path:
        """The file of the rule that a budget writes, beside the output."""
        return self.output.with_suffix(SENSITIVE_FILE_SUFFIX)

    def refuse_unused(self, ctx: click.Context) -> None:
        """Raise UsageError for a threshold that neither a validation nor a budget uses."""
        if not self.validate:
            used = (*BUDGET_THRESHOLDS, "metric") if self.partial.has_budget else ()
            refuse_unused_thresholds(ctx, used)

    def check_outputs(self) -> None:
        """Raise UsageError, before any work, for a file that could not be written at the end."""
        check_output(self.output, self.force)
        if self.until_it_builds:
            check_output(self.rule_file, self.force, "the rule file of --until-it-builds")
        if self.partial.has_budget:
            check_output(self.sensitive_file, self.force, "the rule file of the budget")
        check_reports(self.report, self.force)
        if self.save_ranges:
            check_output(self.save_ranges, self.force)
        if self.is_opened:
            require_viewer()


class _Inputs(msgspec.Struct, frozen=True):
    """The files that the options name, once they are read."""

    source: Source
    rules: RuleSet
    #: Shapes of inputs from ``--shapes``, by name.
    shapes: dict[str, Shape]
    known_ranges: KnownRanges | None
    #: The metric of the validation and of the budget, if there is one.
    metric: Metric | None
    #: What the model must reach; None where only the guard applies.
    budget: Budget | None


@click.command("quantize", cls=FleetCommand)
@click.argument("models", type=FILE, nargs=-1, required=True)
@fleet_output_options
@labelled_data_options
@plan_options
@method_options
@ranges_option
@observing_options
@save_ranges_option
@existing_option
@report_option
@click.option(
    "--validate",
    is_flag=True,
    help="Then validate: the accuracy on the data, and an engine for each target, "
    "predicted for TensorRT without a GPU.",
)
@click.option(
    "--until-it-builds",
    is_flag=True,
    help="Compile for each rtx --target, leave in float the layers that are refused, "
    "and write them as a rule file.",
)
@metric_option
@threshold_options
@partial_options
@store_weights_option
@float_options
@open_option
@format_option
@click.pass_context
@collect_options(QuantizeOptions)
def command(ctx: click.Context, options: QuantizeOptions) -> None:
    """Write MODELS with Q/DQ pairs as the rules require and scales from your data, or --ranges.

    One model is written to -o, several ones into --out-dir. A model that is quantized already, by
    any tool, keeps its scales. Data is only needed for pairs without a scale. For an rtx target the
    first lines compare bytes and kernels with FP16 alone and name the smallest file's command
    (models up to 32 MB and 2,000 nodes; larger ones with --validate).

    \b
    Example:
      qdq quantize resnet50.onnx -o resnet50.int8.onnx --data samples/ --target rtx:sm86 --validate
      qdq quantize net.onnx -o net.int8.onnx --data d/ --target rtx:sm86 --float fp16
      qdq quantize net.onnx -o net.fp8.onnx --data d/ --rules tensorrt-fp8 --target rtx:sm89
      qdq quantize net.onnx -o net.int8.onnx --data d/ --target rtx:sm86 --until-it-builds
      qdq quantize yolo.onnx -o yolo.int8.onnx --images photos/ --preprocess yolo --samples 256
      qdq quantize net.onnx -o net.int8.onnx --data d/ --metric top1 --max-drop 0.5%
      qdq quantize net.onnx -o net.int8.onnx --data d/ --min-snr 25dB --keep-float 5%
      qdq quantize resnet50.onnx -o resnet50.int8.onnx --ranges resnet50.cache
      qdq quantize resnet50.qat.onnx -o resnet50.int8.onnx --existing repair
      qdq quantize zoo/*.onnx --out-dir int8/ --jobs 4 --data 'samples/{stem}'
    """
    options.check_outputs()
    options.refuse_unused(ctx)
    inputs = _read_inputs(ctx, options)
    plan_external_copies(inputs.source, options.output, options.force)
    named_files = list_observed_files(options.ranges, inputs.known_ranges)
    with resumable(options.observing), name_files_in_errors(*named_files):
        result = _quantize(options, inputs)
        report = _make_report(options, inputs, result)
        with written_together():
            written = _write_outputs(options, inputs, result, report)
    hints = _name_files(options, inputs).make_hint(result, report.validation)
    _print_report(options, report, hints)
    _finish(options, written, list_next_steps(ctx, options.output, result, report))
    ctx.exit(1 if report.findings or report.misses else 0)


def _finish(options: QuantizeOptions, written: list[Path], steps: list[str]) -> None:
    """Print what was written and the next commands, and open the model where that is requested."""
    if options.layout == "text":
        print_written(written, steps)
    if options.is_opened:
        open_model(options.output)


def _print_report(options: QuantizeOptions, report: Report, hints: Iterable[Section]) -> None:
    """Print the result first; `--quiet` prints what is wrong with it alone."""
    if is_quiet() and options.layout == "text":
        print_wrong(report)
        return
    sections = [result_section(report, options.output.name), *hints]
    sections += report_sections(report, is_target_default=not options.plan.targets)
    print_record(options.layout, report, sections)


def _read_inputs(ctx: click.Context, options: QuantizeOptions) -> _Inputs:
    known_ranges = read_known_ranges(ctx, options.ranges, options.data)
    shapes = optimal_shapes(parse_profiles(options.plan.shapes))
    source = load(options.model)
    rules = read_rule_sets(options.plan.rule_sets or default_rule_sets(source))
    metric = None
    if options.validate or options.partial.has_budget:
        has_data = options.data.source is not None
        metric = read_metric(ctx, options.metric, has_data, options.thresholds)
    budget = options.partial.make_budget(ctx, options.thresholds, metric)
    if budget is not None and options.data.source is None:
        raise UsageError("a budget is measured on samples. Pass --data or --images.")
    return _Inputs(source, rules, shapes, known_ranges, metric, budget)


def _quantize(options: QuantizeOptions, inputs: _Inputs) -> Quantized:
    """Return the quantized model, and show the progress."""
    request = options.plan.parse(inputs.rules)
    index = GraphIndex(inputs.source)
    require_shapes(index, inputs.shapes)
    has_ranges = inputs.known_ranges is not None or bool(find_quantized_nodes(inputs.source))
    is_optional = has_ranges or _quantizes_weights_alone(inputs.rules)
    feeds = options.data.open_feeds(index, optional=is_optional)
    total = feeds.count if feeds else None
    with (
        progress("building", unit="builds") as advance_builds,
        progress("calibrating", total, resumed=options.observing.resume) as advance,
        progress("measuring sensitivity", unit="runs") as advance_runs,
    ):
        build_options = None
        if options.until_it_builds:
            samples = feeds.first() if feeds else {}
            shapes = {name: values.shape for name, values in samples.items()}
            build_options = BuildOptions(shapes | inputs.shapes, advance_builds)
        return quantize(
            inputs.source,
            options.data.source,
            rules=request.rules,
            targets=request.targets,
            method=options.method.method,
            weights=options.method.weights,
            leave_float=request.leave_float,
            batch=options.data.batch,
            allow_unmatched=request.allow_unmatched,
            progress=advance,
            until_it_builds=build_options,
            profiles=request.profiles,
            observing=options.observing,
            given=inputs.known_ranges,
            existing=options.existing,
            recovery=options.partial.make_recovery(inputs.budget, advance_runs),
            store_weights=options.store_weights,
            float_type=options.floats,
        )


def _quantizes_weights_alone(rules: RuleSet) -> bool:
    """Whether no rule asks for a pair on an activation."""
    formats = {rule.using for rule in rules.rules if rule.using}
    return bool(formats) and all(FORMATS[name].constant for name in formats)


def _make_report(options: QuantizeOptions, inputs: _Inputs, result: Quantized) -> Report:
    """Return the report, with a validation where the options request one."""
    report = Report(result.plan, result.scales, result.findings)
    if options.validate:
        validation, original_accuracy = _validate(options, inputs, result)
        report = msgspec.structs.replace(
            report,
            validation=validation,
            misses=misses(validation, options.thresholds),
            original_accuracy=original_accuracy or msgspec.UNSET,
        )
    if result.partial is not None:
        report = msgspec.structs.replace(
            report, partial=result.partial, misses=(*report.misses, *_find_missed(result.partial))
        )
    files = _name_files(options, inputs)
    return msgspec.structs.replace(
        report,
        existing=result.existing or msgspec.UNSET,
        recovery=result.recovery or msgspec.UNSET,
        build_search=result.build_search or msgspec.UNSET,
        cast=result.cast or msgspec.UNSET,
        file_choices=files.choose(result, report.validation),
    )


def _name_files(options: QuantizeOptions, inputs: _Inputs) -> QuantizedFiles:
    return QuantizedFiles(options.model, options.output, options.data, inputs.shapes)


def _find_missed(partial: PartialResult | str) -> tuple[str, ...]:
    """Return a sentence for a budget that was not reached."""
    if isinstance(partial, str) or partial.is_reached:
        return ()
    return (f"the budget was not reached: {partial.goal}",)


def _validate(
    options: QuantizeOptions, inputs: _Inputs, result: Quantized
) -> tuple[Validation, Accuracy | None]:
    """Return the validation of the result, and the accuracy of the quantized model it came from."""
    # The file at the source's path is the float model, so the stamp of that file does not apply.
    quantized = msgspec.structs.replace(result.source, model=result.model, stamp=None)
    with progress("validating") as advance:
        validation = validate(
            result.source,
            quantized,
            data=options.data.source,
            targets=result.plan.targets,
            shapes=inputs.shapes,
            batch=options.data.batch,
            progress=advance,
            ort_libraries=options.observing.ort_libraries,
            metric=inputs.metric,
        )
        original_accuracy = None
        if result.existing and options.data.source is not None:
            original_accuracy = _measure_original(options, inputs, result.source)
    return validation, original_accuracy


def _measure_original(
    options: QuantizeOptions, inputs: _Inputs, float_source: Source
) -> Accuracy | None:
    """Return the accuracy of the quantized model that was passed, compared with its float model.

    None if ONNX Runtime cannot run it.
    """
    index = GraphIndex(float_source)
    quantized_index = GraphIndex(inputs.source)
    try:
        feeds = open_feeds(index, options.data.source, options.data.batch)
        libraries = options.observing.ort_libraries
        return compare_outputs(
            index, quantized_index, feeds, libraries=libraries, metric=inputs.metric
        )
    except ModelError:
        return None


def _write_outputs(
    options: QuantizeOptions, inputs: _Inputs, result: Quantized, report: Report
) -> list[Path]:
    """Write the model and rule files, and the report and the ranges where the options name files.

    Returns the paths of the files.
    """
    save(result.model, result.source, options.output, options.force)
    write_reports(options.report, _make_content(options, inputs, result, report))
    if options.save_ranges and result.ranges:
        write_ranges(options.save_ranges, result.ranges)
    budget_file = options.sensitive_file if inputs.budget else None
    rule_files = write_rule_files(result, inputs.rules, options.rule_file, budget_file)
    ranges_file = filter(None, (options.save_ranges,))
    return [options.output, *rule_files, *options.report, *ranges_file]


def _make_content(
    options: QuantizeOptions, inputs: _Inputs, result: Quantized, report: Report
) -> ReportContent:
    is_default = not options.plan.targets

    def make_page() -> Page:
        from qdq.reports.command_pages import quantize_page

        return quantize_page(report, result, inputs.rules, options.output.name, is_default)

    sections = partial(full_sections, report, is_target_default=is_default)
    return ReportContent(report, sections, make_page)
