"""`qdq check`: findings in models, for the shell, for pre-commit and for code scanning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from qdq.checking.baseline import BaselineEntry, encode_baseline, is_baseline, make_entries
from qdq.checking.catalogue import PROBLEMS
from qdq.checking.selection import Selection, parse_codes
from qdq.cli.check_printers import PRINTERS, CheckAnswer, print_codes
from qdq.cli.check_session import CheckSession, CheckSettings
from qdq.cli.messages import print_line, print_written
from qdq.cli.options import FILE, OUTPUT_FILE, PATH, collect_options, force_option, jobs_option
from qdq.cli.plan_options import (
    make_rules_option,
    parse_targets,
    read_rule_sets,
    target_option,
)
from qdq.cli.project_file import Project
from qdq.cli.report_options import check_reports, report_option, write_reports
from qdq.cli.viewer import open_model, open_option, require_viewer
from qdq.errors import UsageError
from qdq.files.output import check_output, write_atomic, written_together
from qdq.graph.loader import note_model_files
from qdq.reports.sarif import CheckedModel
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
    report: tuple[Path, ...]
    force: bool
    is_opened: bool
    layout: str
    codes: bool
    jobs: int

    def check_outputs(self) -> None:
        """Raise UsageError, before any work, for options that exclude each other, and outputs."""
        if not self.models:
            raise click.UsageError("Missing argument 'MODELS...'.")
        if self.fix and self.write_baseline:
            raise UsageError(
                "--fix changes models and --write-baseline accepts them as they are. "
                "Pass one of them."
            )
        if self.report and self.write_baseline:
            raise UsageError(
                "--report reports findings and --write-baseline accepts them. Pass one of them."
            )
        check_reports(self.report, self.force)
        if self.report:
            for model in self.models:
                note_model_files(model)
        if self.is_opened:
            if len(self.models) != 1:
                raise UsageError("--open shows one model. Pass one.")
            require_viewer()

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
@report_option
@force_option
@open_option
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
      qdq check resnet50.int8.onnx --report check.html --report check.md
      qdq check --fix resnet50.ort.onnx
      qdq check --jobs 8 zoo/*.onnx
    """
    if options.codes:
        print_codes(options.layout)
        return
    options.check_outputs()
    session = _ReportedSession(options.parse_settings(ctx.obj), options.jobs)
    if options.write_baseline:
        ctx.exit(_write_baseline(options.write_baseline, options.models, session))
    PRINTERS[options.layout](session, options.models)
    _finish(options, session)
    ctx.exit(session.exit_code)


class _ReportedSession(CheckSession):
    """A session that keeps its results for reports."""

    #: The models checked so far.
    results: tuple[CheckedModel, ...] = ()

    def check_models(self, models: Sequence[Path]) -> Iterator[CheckedModel]:
        """Yield the findings in each model, as the session without reports does."""
        for checked in super().check_models(models):
            self.results = (*self.results, checked)
            yield checked


def _finish(options: CheckOptions, session: _ReportedSession) -> None:
    """Write the reports and open the model, where the options request that."""
    if options.report:
        _write_reports(options, session)
    if options.is_opened:
        open_model(options.models[0])


def _write_reports(options: CheckOptions, session: _ReportedSession) -> None:
    from qdq.reports.command_pages import check_page, check_sections
    from qdq.reports.report_files import ReportContent

    results = session.results
    answer = CheckAnswer(results, session.stale_entries)
    content = ReportContent(answer, lambda: check_sections(results), lambda: check_page(results))
    with written_together():
        write_reports(options.report, content)
    if options.layout == "text":
        print_written(options.report)


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
