"""`qdq check`: findings in models, for the shell, for pre-commit and for code scanning."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.checking.baseline import BaselineEntry, encode_baseline, is_baseline, make_entries
from qdq.checking.catalogue import PROBLEMS
from qdq.checking.selection import Selection, parse_codes
from qdq.cli.check_printers import PRINTERS, print_codes
from qdq.cli.check_session import CheckSession, CheckSettings
from qdq.cli.messages import print_line
from qdq.cli.options import FILE, OUTPUT_FILE, PATH, collect_options, jobs_option
from qdq.cli.plan_options import (
    make_rules_option,
    parse_targets,
    read_rule_sets,
    target_option,
)
from qdq.cli.project_file import Project
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic
from qdq.rules.shipped import DEFAULT_SET, FP8_SET


class CheckOptions(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    models: tuple[Path, ...]
    rule_sets: tuple[str, ...]
    targets: tuple[str, ...]
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    baseline: Path | None
    write_baseline: Path | None
    fix: bool
    engine: bool
    layout: str
    codes: bool
    jobs: int

    def parse_settings(self, project: Project | None) -> CheckSettings:
        """Return how models are checked; raises UsageError for invalid options."""
        rules = read_rule_sets(self.rule_sets) if self.rule_sets else None
        return CheckSettings(
            rules=rules,
            targets=parse_targets(self.targets),
            leave_float=project.leave_float if project else None,
            selection=self._parse_selection(project),
            baseline=None if self.write_baseline else self.baseline,
            engine=self.engine,
            fix=self.fix,
        )

    def _parse_selection(self, project: Project | None) -> Selection:
        select = frozenset(PROBLEMS)
        if self.select:
            select = parse_codes(self.select, "--select")
        ignore = parse_codes(self.ignore, "--ignore")
        if project is None:
            return Selection(select, ignore)
        return Selection(select, ignore, project.per_file_ignores, project.path.parent)


@click.command("check")
@click.argument("models", type=FILE, nargs=-1)
@make_rules_option(f"those recorded in the model, else {DEFAULT_SET}, or {FP8_SET} for FP8")
@target_option
@click.option(
    "--select",
    multiple=True,
    metavar="CODE",
    help="Report only these codes or severities; comma-separated or repeated.",
)
@click.option(
    "--ignore",
    multiple=True,
    metavar="CODE",
    help="Do not report these codes or severities; comma-separated or repeated.",
)
@click.option(
    "--baseline", type=PATH, metavar="FILE", help="Do not report the findings in this file."
)
@click.option(
    "--write-baseline",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="Write the findings to a file for --baseline instead of reporting them.",
)
@click.option(
    "--fix",
    is_flag=True,
    help="First fix, in place, what has one correct fix: "
    "formats, and pairs whose scales are in the model.",
)
@click.option(
    "--engine",
    is_flag=True,
    help="Also build each model for its rtx targets, without a GPU, "
    "and report where the engine differs.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(tuple(PRINTERS)),
    default="text",
    show_default=True,
    help="Output for people (text), programs (json), code scanning (sarif) or GitHub.",
)
@jobs_option
@click.option("--codes", is_flag=True, help="List the codes with their meanings, and exit.")
@click.pass_context
@collect_options(CheckOptions)
def command(ctx: click.Context, options: CheckOptions) -> None:
    """Report Q/DQ of MODELS that TensorRT would refuse or misread, or that differs from the rules.

    Rules and targets default to those of the project file, else to those that qdq recorded in each
    model. Exit 1 if there are findings, 2 if a model could not be checked. The other models are
    checked all the same.

    \b
    Example:
      qdq check resnet50.int8.onnx
      qdq check models/*.onnx --ignore note --format sarif > findings.sarif
      qdq check --fix resnet50.ort.onnx
      qdq check --jobs 8 zoo/*.onnx
    """
    if options.codes:
        print_codes(options.layout)
        return
    if not options.models:
        raise click.UsageError("Missing argument 'MODELS...'.")
    if options.fix and options.write_baseline:
        raise UsageError(
            "--fix changes models and --write-baseline accepts them as they are. Pass one of them."
        )
    session = CheckSession(options.parse_settings(ctx.obj), options.jobs)
    if options.write_baseline:
        ctx.exit(_write_baseline(options.write_baseline, options.models, session))
    PRINTERS[options.layout](session, options.models)
    ctx.exit(session.exit_code)


def _write_baseline(path: Path, models: tuple[Path, ...], session: CheckSession) -> int:
    """Write all findings to a baseline and return the exit code.

    Nothing is written if a model could not be checked.
    """
    check_output(path, force=is_baseline(path))
    entries: set[BaselineEntry] = set()
    for checked in session.check_models(models):
        entries.update(make_entries(Path(checked.model), path, checked.findings))
    if session.failure_count:
        print_line(
            f"qdq: {path}: the baseline was not written, since {session.failure_count} of "
            f"{len(models)} models could not be checked. Fix or skip them.",
            err=True,
        )
        return session.exit_code
    write_atomic(path, encode_baseline(entries))
    model_count = len({entry.model for entry in entries})
    print_line(f"wrote {path}: {len(entries)} findings in {model_count} of {len(models)} models")
    return 0
