"""`qdq plan`: the decisions, before anything changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from qdq.cli.float_options import float_type_option
from qdq.cli.messages import print_record, print_summary, print_written
from qdq.cli.options import (
    FILE,
    OUTPUT_FILE,
    collect_options,
    force_option,
    format_option,
)
from qdq.cli.plan_options import PlanOptions, plan_options, read_rule_sets
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic, written_together
from qdq.graph.loader import load
from qdq.planning.decisions import Plan, ScaleGroup
from qdq.planning.kept_nodes import state_kept_nodes
from qdq.planning.plan_diff import PlanDiff, diff_plans
from qdq.planning.plan_file import plan_to_yaml, read_plan
from qdq.planning.plan_request import choose_float_type
from qdq.planning.planner import plan_source, require_float_model
from qdq.reports.json_output import to_json
from qdq.reports.plan_sections import plan_sections, plan_summary
from qdq.reports.sections import Section, sections_text

_REPORT_SUFFIXES = (".json", ".md", ".txt")

_SIGNS = {"gained": "+", "lost": "-", "format": "~", "reason": "~"}


class PlanCommandOptions(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    output: Path | None
    force: bool
    report: Path | None
    older: Path | None
    plan: PlanOptions
    float_type: str | None
    layout: str


@click.command("plan")
@click.argument("model", type=FILE)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FILE,
    metavar="PLAN",
    help="Write the plan here as YAML, for review and for 'qdq apply'.",
)
@click.option(
    "--report",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="Also write the whole plan as .txt, .md, or .json as --format json prints it.",
)
@force_option
@click.option(
    "--diff",
    "older",
    type=FILE,
    metavar="OLD",
    help="Print the changes since this older plan file; exit 1 if there are any.",
)
@plan_options
@float_type_option
@format_option
@click.pass_context
@collect_options(PlanCommandOptions)
def command(ctx: click.Context, options: PlanCommandOptions) -> None:
    """Print for every edge of MODEL whether it gets a pair, and by which rule.

    With -o, the plan is written and its summary printed. --report writes what is printed otherwise,
    or as .json what --format json prints.

    With --diff, print the changes since an older plan instead. The older plan may be of another
    export of the model: edges are matched by the names of nodes and their input slots.

    \b
    Example:
      qdq plan resnet50.onnx --target rtx:sm86 -o resnet50.plan.yaml
      qdq plan bert.onnx --target rtx:sm86 --float fp16 -o bert.plan.yaml
      qdq plan resnet50.onnx --target rtx:sm86 --diff resnet50.plan.yaml
    """
    if options.output:
        check_output(options.output, options.force)
    if options.report:
        _require_suffix(options.report)
        check_output(options.report, options.force)
    older_plan = read_plan(options.older) if options.older else None
    plan = _make_plan(options)
    if older_plan is None:
        _print_plan(options, plan)
        return
    diff = diff_plans(older_plan, plan)
    print_record(options.layout, diff, [_diff_section(diff, str(options.older))])
    ctx.exit(1 if diff else 0)


def _require_suffix(report: Path) -> None:
    """Raise UsageError unless a report's suffix names a format of plans."""
    if report.suffix not in _REPORT_SUFFIXES:
        suffixes = ", ".join(_REPORT_SUFFIXES)
        raise UsageError(
            f"{report}: the suffix chooses the format, and {report.suffix!r} names none for plans. "
            f"Pass a file that ends in {suffixes}."
        )


def _print_plan(options: PlanCommandOptions, plan: Plan) -> None:
    """Print a plan in full, or the summary of one that was written."""
    is_default = not options.plan.targets
    written = [path for path in (options.output, options.report) if path is not None]
    if not written:
        print_record(options.layout, plan, plan_sections(plan, is_target_default=is_default))
        return
    summary = plan_summary(plan, is_target_default=is_default)
    print_summary(options.layout, plan, [summary])
    if options.layout == "text":
        print_written(written)


def _render_plan(options: PlanCommandOptions, plan: Plan, suffix: str) -> str:
    """Return a plan as a report that ends in `.json`, `.md` or `.txt`."""
    if suffix == ".json":
        return to_json(plan)
    sections = plan_sections(plan, is_target_default=not options.plan.targets)
    return sections_text(sections, markdown=suffix == ".md")


def _make_plan(options: PlanCommandOptions) -> Plan:
    """Return the plan, and write it and its report where the options name files."""
    source = load(options.model)
    require_float_model(source)
    request = options.plan.parse(read_rule_sets(options.plan.rule_sets))
    float_type = choose_float_type(options.float_type, request.targets)
    request = msgspec.structs.replace(request, float_type=float_type)
    index, plan = plan_source(source, request)
    plan = state_kept_nodes(plan, index, request)
    with written_together():
        if options.output:
            write_atomic(options.output, plan_to_yaml(plan, index).encode())
        if options.report:
            content = _render_plan(options, plan, options.report.suffix)
            write_atomic(options.report, content.encode())
    return plan


def _diff_section(diff: PlanDiff, older: str) -> Section:
    return Section(f"Changed since {older}", tuple(_format_diff(diff)))


def _format_diff(diff: PlanDiff) -> Iterator[str]:
    """Yield one line for each change between two plans."""
    if not diff.same_model:
        yield "the older plan is of another model, by digest"
    for name, old_value, new_value in diff.context:
        yield f"{name}: {old_value or 'none'} -> {new_value or 'none'}"
    for name in diff.kept_gained:
        yield f"+ {name}  FP32"
    for name in diff.kept_lost:
        yield f"- {name}  FP32"
    for change in diff.edges:
        decisions = f"{change.old or 'nothing'} -> {change.new or 'nothing'}"
        yield f"{_SIGNS[change.kind]} {change.edge}  {decisions}"
    for group in diff.groups_gained:
        yield f"+ {_format_group(group)}"
    for group in diff.groups_lost:
        yield f"- {_format_group(group)}"
    if not diff:
        yield "no decision changed"


def _format_group(group: ScaleGroup) -> str:
    tensors = " + ".join(group.tensors)
    return f"{tensors}  share-scale  {', '.join(group.because)}"
