"""`qdq quantize`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from qdq.calibration.calibrator import KnownRanges
from qdq.cli.options import (
    FILE,
    data_option,
    feeds_of,
    format_option,
    given_ranges,
    leave_float_option,
    method_option,
    naming,
    observed_in,
    observing_option,
    output_option,
    profiles_of,
    ranges_option,
    refuse_idle_thresholds,
    rules_of,
    rules_option,
    save_ranges_option,
    shapes_option,
    show,
    target_option,
    targets_of,
    thresholds_option,
)
from qdq.cli.progress import progress, resumable
from qdq.data.feeds import Feeds, data_files, open_feeds
from qdq.errors import ModelError
from qdq.files.output import check_output, write_atomic
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.shape_profiles import optimal_shapes, require_shapes
from qdq.graph.source import Source
from qdq.pipeline.buildable import RULE_FILE_SUFFIX, leave_float_yaml
from qdq.pipeline.quantize_model import BuildOptions, Quantized, quantize
from qdq.pipeline.requantize import MODES, REPAIR
from qdq.planning.planner import find_quantized_nodes
from qdq.ranges.range_file import write_ranges
from qdq.reports.report import Report, check_report_path, render, report_sections
from qdq.rewriting.model_file import plan_external_copies, save
from qdq.rules.rule import RuleSet
from qdq.rules.shipped import default_rule_sets
from qdq.validation.accuracy import Accuracy, compare_outputs
from qdq.validation.validator import Thresholds, misses, validate


@click.command("quantize")
@click.argument("model", type=FILE)
@output_option
@data_option
@rules_option
@target_option
@method_option
@ranges_option
@observing_option
@save_ranges_option
@leave_float_option
@shapes_option
@click.option(
    "--existing",
    type=click.Choice(MODES),
    default=REPAIR,
    show_default=True,
    help="The Q/DQ that MODEL has: keep all and add what is missing, make it what the rules want, or replace it. Its scales stay but for replace.",
)
@click.option(
    "--report", type=FILE, metavar="FILE", help="Also write a report: .json, .md or .txt."
)
@click.option(
    "--validate",
    "prove",
    is_flag=True,
    help="Then validate: accuracy on the data, and an engine for each target, predicted for TensorRT without a GPU.",
)
@click.option(
    "--until-it-builds",
    is_flag=True,
    help="Compile for each rtx --target; leave in float what is refused, and write that as a rule file.",
)
@thresholds_option
@format_option
@click.pass_context
def command(
    ctx: click.Context, /, model: Path, output: Path, report: Path | None, **given: Any
) -> None:
    """Write MODEL with Q/DQ pairs where the rules want them and scales from your data, or from --ranges.

    A model that is quantized already, by whatever tool, keeps its scales; data is only needed where it has none.

    \b
    Example:
      qdq quantize resnet50.onnx -o resnet50.int8.onnx --data samples/ --target rtx:sm86 --validate
      qdq quantize net.onnx -o net.fp8.onnx --data samples/ --rules tensorrt-fp8 --target rtx:sm89 --until-it-builds
      qdq quantize yolo.onnx -o yolo.int8.onnx --images photos/ --preprocess yolo --samples 256
      qdq quantize resnet50.onnx -o resnet50.int8.onnx --ranges resnet50.cache
      qdq quantize resnet50.qat.onnx -o resnet50.int8.onnx --existing repair
    """
    rule_file = output.with_suffix(RULE_FILE_SUFFIX)
    _check_outputs(model, output, report, rule_file, given)
    if not given["prove"]:
        refuse_idle_thresholds(ctx)
    ranges = given_ranges(ctx, given["ranges"], given["data"])
    shapes = optimal_shapes(profiles_of(given["shapes"]))
    source = load(model)
    rules = rules_of(given["rule_sets"] or default_rule_sets(source))
    plan_external_copies(source, output, given["force"])
    with resumable(given["observing"]), naming(*observed_in(given["ranges"], ranges)):
        result = _quantized(source, rules, shapes, ranges, given)
        made = (
            _report(source, result, given, shapes)
            if given["prove"]
            else Report(result.plan, result.scales, result.findings)
        )
        if result.existing:
            made = msgspec.structs.replace(made, existing=result.existing)
        if result.build_search:
            made = msgspec.structs.replace(made, build_search=result.build_search)
        save(result.model, result.source, output, given["force"])
        if report:
            write_atomic(report, render(made, report.suffix).encode())
        if given["save_ranges"] and result.ranges:
            write_ranges(given["save_ranges"], result.ranges)
    show(given["layout"], made, report_sections(made))
    written = [
        output,
        *_write_refused(result, rules, rule_file),
        *([given["save_ranges"]] if given["save_ranges"] else []),
    ]
    if given["layout"] == "text":
        click.echo(f"\nwrote {', '.join(map(str, written))}")
    ctx.exit(1 if made.findings or made.misses else 0)


def _first_shapes(feeds: Feeds | None) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in feeds.first().items()} if feeds else {}


def _quantized(
    source: Source,
    rules: RuleSet,
    shapes: dict[str, tuple[int, ...]],
    ranges: KnownRanges | None,
    given: dict[str, Any],
) -> Quantized:
    """Return what `quantize` makes of a model, and show its progress."""
    profiles, targets, observing = (
        profiles_of(given["shapes"]),
        targets_of(given["targets"]),
        given["observing"],
    )
    index = GraphIndex(source)
    require_shapes(index, shapes)
    feeds = feeds_of(
        index,
        given["data"],
        given["batch"],
        ranges is not None or bool(find_quantized_nodes(source)),
    )
    with (
        progress("building", unit="builds") as count,
        progress(
            "calibrating", feeds.count if feeds else None, resumed=observing.resume
        ) as advance,
    ):
        building = (
            BuildOptions({**_first_shapes(feeds), **shapes}, count)
            if given["until_it_builds"]
            else None
        )
        return quantize(
            source, given["data"], rules=rules, targets=targets, method=given["method"], weights=given["weights"], leave_float=given["leave_float"],
            batch=given["batch"], allow_unmatched=given["allow_unmatched"], progress=advance, until_it_builds=building, profiles=profiles,
            observing=observing, given=ranges, existing=given["existing"],
        )  # fmt: skip


def _check_outputs(
    model: Path, output: Path, report: Path | None, rule_file: Path, given: dict[str, Any]
) -> None:
    """Raise UsageError, before any work, for a file that could not be written at the end."""
    inputs = (model, *data_files(given["data"]), *([given["ranges"]] if given["ranges"] else []))
    check_output(output, inputs, given["force"])
    if given["until_it_builds"]:
        check_output(rule_file, inputs, given["force"])
    if report:
        check_report_path(report)
        check_output(report, (*inputs, output), given["force"])
    if ranges := given["save_ranges"]:
        check_output(ranges, (*inputs, output, *([report] if report else [])), given["force"])


def _write_refused(result: Quantized, rules: RuleSet, path: Path) -> list[Path]:
    """Write what the compiler refused as a rule file, where it refused anything, and return the file."""
    if not result.build_search or not result.build_search.groups:
        return []
    write_atomic(
        path, leave_float_yaml(path.stem, result.source.name, result.build_search, rules).encode()
    )
    return [path]


def _report(
    source: Source, result: Quantized, given: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> Report:
    quantized = msgspec.structs.replace(
        result.source, model=result.model, stamp=None
    )  # the file at its path is the float model
    with progress("validating") as advance:
        validation = validate(
            result.source, quantized, data=given["data"], batch=given["batch"],
            targets=result.plan.targets, shapes=shapes, progress=advance,
        )  # fmt: skip
        before = (
            _given_accuracy(source, result, given)
            if result.existing and given["data"] is not None
            else None
        )
    missed = misses(
        validation, Thresholds(given["min_snr"], given["min_cosine"], given["min_top1"])
    )
    return Report(
        result.plan,
        result.scales,
        result.findings,
        validation,
        missed,
        original_accuracy=before or msgspec.UNSET,
    )


def _given_accuracy(source: Source, result: Quantized, given: dict[str, Any]) -> Accuracy | None:
    """Return how far a quantized model, as it was given, is from its float model; None where ONNX Runtime cannot run it."""
    index = GraphIndex(result.source)
    try:
        return compare_outputs(
            index, GraphIndex(source), open_feeds(index, given["data"], given["batch"])
        )
    except ModelError:
        return None
