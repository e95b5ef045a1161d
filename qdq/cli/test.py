"""`qdq test`: the cases of rule files."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.options import FILE, format_option
from qdq.reports.json_output import to_json
from qdq.testing.case_runner import CaseResult, run_cases


class Answer(msgspec.Struct, frozen=True):
    """What `--format json` prints."""

    results: tuple[CaseResult, ...]


@click.command("test")
@click.argument("path", metavar="RULES", type=FILE)
@click.option(
    "--cases",
    type=FILE,
    metavar="FOLDER",
    help="Where the case files lie.  [default: RULES/cases, or fixtures/rules above RULES]",
)
@click.option("--no-engines", is_flag=True, help="Do not build the engines that cases ask for.")
@format_option
@click.pass_context
def command(
    ctx: click.Context, path: Path, cases: Path | None, no_engines: bool, layout: str
) -> None:
    """Run the cases of every rule in RULES: a rule file, a set's folder or a folder of sets.

    Exit 1 if a case fails, or a rule has no case that needs it.

    \b
    Example:
      qdq test rules/
    """
    results = []
    for result in run_cases(path, cases, engines=not no_engines):
        results.append(result)
        if layout == "text":
            name = f"{result.rule}: {result.case}" if result.case else f"{result.rule}: as a whole"
            click.echo(f"{'ok    ' if not result.failures else 'FAILED'} {name}")
            for failure in result.failures:
                click.echo(f"         {failure}")
    failed = sum(bool(r.failures) for r in results)
    if layout == "json":
        click.echo(to_json(Answer(tuple(results))), nl=False)
    else:
        click.echo(f"{len(results) - failed} of {len(results)} hold")
    ctx.exit(1 if failed else 0)
