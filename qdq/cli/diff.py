"""`qdq diff`: pairs added, removed, moved and rescaled between two models."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.messages import print_record, print_written
from qdq.cli.options import FILE, collect_options, force_option, format_option
from qdq.cli.report_options import check_reports, report_option, write_reports
from qdq.files.output import written_together
from qdq.quantized.pair_diff import PairDiff, diff
from qdq.reports.changes import diff_sections
from qdq.reports.sections import Section


class DiffOptions(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    old: Path
    new: Path
    report: tuple[Path, ...]
    force: bool
    layout: str


@click.command("diff")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@report_option
@force_option
@format_option
@click.pass_context
@collect_options(DiffOptions)
def command(ctx: click.Context, options: DiffOptions) -> None:
    """Print the Q/DQ pairs that only OLD or only NEW has, that moved, or that have other scales.

    Either may be a float model. Both may come from other tools, or from exports that name nodes
    differently. Exit 0 if they have the same pairs, 1 if not.

    \b
    Example:
      qdq diff resnet50.int8.onnx resnet50.repaired.onnx
      qdq diff resnet50.onnx resnet50.int8.onnx --format json
      qdq diff resnet50.int8.onnx resnet50.repaired.onnx --report diff.html
    """
    check_reports(options.report, options.force)
    changes = diff(options.old, options.new)
    sections = list(diff_sections(changes))
    if options.report:
        _write_reports(options, changes, sections)
    print_record(options.layout, changes, sections)
    if options.report and options.layout == "text":
        print_written(options.report)
    ctx.exit(1 if changes else 0)


def _write_reports(options: DiffOptions, changes: PairDiff, sections: list[Section]) -> None:
    from qdq.reports.command_pages import diff_page
    from qdq.reports.report_files import ReportContent

    content = ReportContent(changes, lambda: sections, lambda: diff_page(changes, options.new))
    with written_together():
        write_reports(options.report, content)
