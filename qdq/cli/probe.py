"""`qdq probe`: kernel tables, measured with the real compiler."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from qdq.cli.messages import print_summary_line
from qdq.cli.options import OUTPUT_FILE, PATH, collect_options, force_option, format_option
from qdq.cli.plan_options import parse_targets
from qdq.cli.progress import progress
from qdq.engines.kernel_probe import OPERATORS, probe, table_yaml
from qdq.errors import UsageError, did_you_mean
from qdq.files.output import check_output, write_atomic, written_together
from qdq.reports.json_output import to_json
from qdq.rules.kernel_tables import KernelTable
from qdq.target import Target


class ProbeAnswer(msgspec.Struct, frozen=True):
    """One kernel table for each target."""

    tables: tuple[KernelTable, ...]


class ProbeOptions(msgspec.Struct, frozen=True):
    """The options of the command."""

    targets: tuple[str, ...]
    output: Path | None
    output_folder: Path | None
    operators: str | None
    jobs: int | None
    force: bool
    layout: str

    def parse_targets(self) -> tuple[Target, ...]:
        """Return each target once; raises UsageError for one without compute capability."""
        targets = tuple(dict.fromkeys(parse_targets(self.targets)))
        for target in targets:
            if not target.sm:
                raise UsageError(
                    f"target {target}: a table is of one compute capability. "
                    f"Pass that of the GPU, such as {target.backend}:sm80."
                )
        return targets

    def parse_operators(self) -> tuple[str, ...]:
        """Return the operators that are measured; none for all. Raises UsageError for others."""
        words = (self.operators or "").split(",")
        names = tuple(word.strip() for word in words if word.strip())
        for name in names:
            if name not in OPERATORS:
                hint = did_you_mean(name, OPERATORS)
                raise UsageError(
                    f"--operators {name}: the operator is not measured{hint} "
                    f"Pass some of {', '.join(OPERATORS)}."
                )
        return names

    def list_paths(self, targets: Sequence[Target]) -> tuple[Path, ...]:
        """Return the file of each target's table; none where the tables are printed."""
        if self.output and self.output_folder:
            raise UsageError("-o and --output-folder exclude each other. Pass one of them.")
        if self.output and len(targets) > 1:
            raise UsageError("-o is for the table of one target. Pass --output-folder for several.")
        if self.output:
            return (self.output,)
        folder = self.output_folder
        if folder is None:
            return ()
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder. Create it first.")
        return tuple(folder / f"{target.backend}-sm{target.sm}.yaml" for target in targets)


@click.command("probe")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    metavar="TARGET",
    help="Target to measure, such as rtx:sm86; repeat for several.",
)
@click.option(
    "-o", "--output", type=OUTPUT_FILE, metavar="FILE", help="File for the table of one target."
)
@click.option(
    "--output-folder",
    type=PATH,
    metavar="FOLDER",
    help="Folder for the tables, each named after its target, such as rtx-sm86.yaml.",
)
@click.option(
    "--operators", metavar="NAMES", help="Measure only these operators, such as Conv,MatMul."
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Number of compilers that run at once.  [default: one per core]",
)
@force_option
@format_option
@collect_options(ProbeOptions)
def command(options: ProbeOptions) -> None:
    """Build one-layer networks and write which of them run in INT8, FP8 and INT4: a kernel table.

    Networks for rtx targets are compiled by TensorRT-RTX without a GPU. A trt target is measured
    with TensorRT on the GPU that is present; qdq's tests do not cover that path. Without -o and
    --output-folder the tables are printed.

    \b
    Example:
      qdq probe --target rtx:sm86 -o rtx-sm86.yaml
    """
    targets = options.parse_targets()
    operators = options.parse_operators()
    paths = options.list_paths(targets)
    for path in paths:
        check_output(path, options.force)
    tables = []
    for target in targets:
        tables.append(_probe_target(target, operators, options.jobs))
    with written_together():
        for path, table in zip(paths, tables, strict=False):
            write_atomic(path, table_yaml(table).encode())
    _print_tables(options.layout, tables, paths)


def _probe_target(target: Target, operators: tuple[str, ...], jobs: int | None) -> KernelTable:
    job_count = jobs or os.cpu_count() or 1
    with progress(f"probing {target}", unit="networks") as advance:
        return probe(target, operators, job_count, advance)


def _print_tables(layout: str, tables: Sequence[KernelTable], paths: Sequence[Path]) -> None:
    """Print the tables, as text only a summary of those that were written."""
    if layout == "json":
        click.echo(to_json(ProbeAnswer(tuple(tables))), nl=False)
        return
    if not paths:
        click.echo("---\n".join(map(table_yaml, tables)), nl=False)
        return
    for path, table in zip(paths, tables, strict=True):
        row_count = len(table.int8) + len(table.fp8)
        rows = f"{row_count} rows from {table.networks} networks"
        print_summary_line(f"{path}: {rows}, {table.compiler}")
