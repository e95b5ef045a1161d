"""`qdq plan`: the decisions, before anything changes."""

from __future__ import annotations

from pathlib import Path

import click

from qdq.cli.options import FILE, format_option, leave_float_option, rules_of, rules_option, show, target_option, targets_of
from qdq.planfile import plan_yaml
from qdq.planning import plan
from qdq.reporting import plan_sections
from qdq.saving import check_output, write_whole


@click.command("plan")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, metavar="PLAN", help="Write the plan here as YAML, for review and for 'qdq apply'.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@rules_option
@target_option
@leave_float_option
@format_option
def command(  # noqa: PLR0913, PLR0917 click passes each option
    model: Path,
    output: Path | None,
    force: bool,
    rule_sets: tuple[str, ...],
    targets: tuple[str, ...],
    leave_float: tuple[str, ...],
    allow_unmatched: bool,
    layout: str,
) -> None:
    """Print for every edge of MODEL whether it gets a pair, and which rule decided it.

    \b
    Example:
      qdq plan resnet50.onnx --target rtx:sm86 -o resnet50.plan.yaml
    """
    if output:
        check_output(output, (model,), force)
    made = plan(model, rules=rules_of(rule_sets), targets=targets_of(targets), leave_float=leave_float, allow_unmatched=allow_unmatched)
    if output:
        write_whole(output, plan_yaml(made).encode())
    show(layout, made, plan_sections(made))
