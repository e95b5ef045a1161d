"""`qdq plan`: the decisions, before anything changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qdq.cli.options import (
    FILE,
    format_option,
    leave_float_option,
    profiles_of,
    rules_of,
    rules_option,
    shapes_option,
    show,
    target_option,
    targets_of,
)
from qdq.files.output import check_output, write_atomic
from qdq.graph.loader import load
from qdq.planning.plan_diff import PlanDiff, diff_plans
from qdq.planning.plan_file import plan_to_yaml, read_plan
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_source, require_float_model
from qdq.reports.plan_sections import plan_sections
from qdq.reports.sections import Section

_SIGNS = {"gained": "+", "lost": "-", "format": "~", "reason": "~"}


@click.command("plan")
@click.argument("model", type=FILE)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="PLAN",
    help="Write the plan here as YAML, for review and for 'qdq apply'.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--diff",
    "older",
    type=FILE,
    metavar="OLD",
    help="Print what changed against this older plan file; exit 1 if anything did.",
)
@rules_option
@target_option
@leave_float_option
@shapes_option
@format_option
@click.pass_context
def command(
    ctx: click.Context, /, model: Path, output: Path | None, older: Path | None, **given: Any
) -> None:
    """Print for every edge of MODEL whether it gets a pair, and which rule decided it.

    With --diff, print what changed since an older plan instead. It may be of another export of
    the model: edges are matched by the names of nodes and their input slots.

    \b
    Example:
      qdq plan resnet50.onnx --target rtx:sm86 -o resnet50.plan.yaml
      qdq plan resnet50.onnx --target rtx:sm86 --diff resnet50.plan.yaml
    """
    if output:
        check_output(output, (model,), given["force"])
    old = read_plan(older) if older else None
    source = load(model)
    require_float_model(source)
    rules, profiles = rules_of(given["rule_sets"]), profiles_of(given["shapes"])
    index, made = plan_source(
        source,
        PlanRequest(
            rules,
            targets_of(given["targets"]),
            given["leave_float"],
            given["allow_unmatched"],
            profiles,
        ),
    )
    if output:
        write_atomic(output, plan_to_yaml(made, index).encode())
    if old is None:
        show(given["layout"], made, plan_sections(made))
        return
    diff = diff_plans(old, made)
    show(given["layout"], diff, [_diff_section(diff, str(older))])
    ctx.exit(1 if diff else 0)


def _diff_section(diff: PlanDiff, older: str) -> Section:
    lines = [] if diff.same_model else ["the older plan is of another model, by digest"]
    lines += [f"{what}: {was or 'none'} -> {now or 'none'}" for what, was, now in diff.context]
    for change in diff.edges:
        said = f"{change.old or 'nothing'} -> {change.new or 'nothing'}"
        lines.append(f"{_SIGNS[change.kind]} {change.edge}  {said}")
    for sign, groups in (("+", diff.groups_gained), ("-", diff.groups_lost)):
        lines += [
            f"{sign} {' + '.join(group.tensors)}  share-scale  {', '.join(group.because)}"
            for group in groups
        ]
    return Section(
        f"Changed since {older}", tuple(lines if diff else [*lines, "no decision changed"])
    )
