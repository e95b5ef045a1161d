"""`qdq check`: findings in models, for the shell and for pre-commit."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.checking import Finding, check
from qdq.cli.options import FILE, format_option, rules_of, rules_option, target_option, targets_of
from qdq.reporting import to_json


class Checked(msgspec.Struct, frozen=True):
    """The findings in one model."""

    model: str
    findings: tuple[Finding, ...]


class Answer(msgspec.Struct, frozen=True):
    """What `--format json` prints."""

    models: tuple[Checked, ...]


@click.command("check")
@click.argument("models", type=FILE, nargs=-1, required=True)
@rules_option
@target_option
@format_option
@click.pass_context
def command(ctx: click.Context, models: tuple[Path, ...], rule_sets: tuple[str, ...], targets: tuple[str, ...], layout: str) -> None:
    """Print where the Q/DQ of MODELS differ from what the rules ask, or would be refused by TensorRT.

    Rules and targets default to those of the project file, else to those that qdq wrote into each
    model. Exit 1 if anything is found.

    \b
    Example:
      qdq check resnet50.int8.onnx
    """
    rules = rules_of(rule_sets) if rule_sets else None
    globs = ctx.obj.options.get("leave_float") if ctx.obj else None
    answer = Answer(tuple(Checked(str(m), check(m, rules=rules, targets=targets_of(targets), leave_float=globs)) for m in models))
    if layout == "json":
        click.echo(to_json(answer), nl=False)
    else:
        for checked in answer.models:
            for finding in checked.findings:
                click.echo(f"{checked.model}: {finding}")
            click.echo(f"{checked.model}: {len(checked.findings) or 'no'} finding{'s' * (len(checked.findings) != 1)}")
    ctx.exit(1 if any(c.findings for c in answer.models) else 0)
