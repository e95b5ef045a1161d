"""`qdq test`: the cases of rule files."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.messages import print_line, print_note
from qdq.cli.options import FILE, format_option
from qdq.optional_packages import explain_missing
from qdq.reports.json_output import to_json
from qdq.testing.case_runner import CaseResult, can_run_models, run_cases


class TestAnswer(msgspec.Struct, frozen=True):
    """One result for each case, and one for each rule as a whole."""

    results: tuple[CaseResult, ...]


@click.command("test")
@click.argument("path", metavar="RULES", type=FILE)
@click.option(
    "--cases",
    type=FILE,
    metavar="FOLDER",
    help="Folder of the case files.  [default: RULES/cases, or fixtures/rules above RULES]",
)
@click.option("--no-engines", is_flag=True, help="Do not build the engines that cases require.")
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
    if not can_run_models():
        reason = explain_missing("onnxruntime")
        print_note(f"qdq: the cases are planned, but their models are not run. {reason}")
    results = []
    failure_count = 0
    for result in run_cases(path, cases, engines=not no_engines):
        results.append(result)
        if result.failures:
            failure_count += 1
        if layout == "text":
            _print_result(result)
    if layout == "json":
        click.echo(to_json(TestAnswer(tuple(results))), nl=False)
    else:
        print_line(f"{len(results) - failure_count} of {len(results)} hold")
    ctx.exit(1 if failure_count else 0)


def _print_result(result: CaseResult) -> None:
    status = "FAILED" if result.failures else "ok    "
    print_line(f"{status} {result.rule}: {result.case or 'as a whole'}")
    for failure in result.failures:
        print_line(f"         {failure}")
