"""`qdq probe`: kernel tables, measured with the real compiler."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from qdq.cli.options import FILE, format_option, targets_of
from qdq.cli.progress import progress
from qdq.engines.kernel_probe import OPERATORS, probe, table_yaml
from qdq.errors import UsageError, did_you_mean
from qdq.files.output import check_output, write_atomic
from qdq.reports.json_output import to_json
from qdq.rules.kernel_tables import KernelTable
from qdq.target import Target


class Answer(msgspec.Struct, frozen=True):
    """What `--format json` prints."""

    tables: tuple[KernelTable, ...]


@click.command("probe")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    metavar="TARGET",
    help="What to measure, such as rtx:sm86; repeat for several.",
)
@click.option(
    "-o", "--output", type=FILE, metavar="FILE", help="Write the one target's table here."
)
@click.option(
    "--output-folder",
    type=FILE,
    metavar="FOLDER",
    help="Write each table here, named after its target, such as rtx-sm86.yaml.",
)
@click.option(
    "--operators", metavar="NAMES", help="Measure these operators only, such as Conv,MatMul."
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="How many compilers run at once.  [default: one for each core]",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@format_option
def command(
    targets: tuple[str, ...],
    operators: str | None,
    jobs: int | None,
    force: bool,
    layout: str,
    **files: Path | None,
) -> None:
    """Build one-layer networks and write which of them run in INT8 and FP8: a kernel table.

    Networks for rtx targets are compiled by TensorRT-RTX with no GPU. A trt target is measured
    with TensorRT proper on the GPU that is present; that path is untested by qdq's own suite.
    Without -o and --output-folder the tables are printed.

    \b
    Example:
      qdq probe --target rtx:sm86 -o rtx-sm86.yaml
    """
    wanted = _targets(targets)
    names = _operators(operators)
    paths = _paths(wanted, files["output"], files["output_folder"])
    for path in paths:
        check_output(path, (), force)
    tables = []
    for target in wanted:
        with progress(f"probing {target}", unit="networks") as advance:
            tables.append(probe(target, names, jobs or os.cpu_count() or 1, advance))
    for path, table in zip(paths, tables, strict=False):
        write_atomic(path, table_yaml(table).encode())
    if layout == "json":
        click.echo(to_json(Answer(tuple(tables))), nl=False)
    elif paths:
        for path, table in zip(paths, tables, strict=True):
            click.echo(
                f"{path}: {len(table.int8) + len(table.fp8)} rows from {table.networks} networks, {table.compiler}"
            )
    else:
        click.echo("---\n".join(map(table_yaml, tables)), nl=False)


def _targets(texts: tuple[str, ...]) -> tuple[Target, ...]:
    targets = tuple(dict.fromkeys(targets_of(texts)))
    for target in targets:
        if not target.sm:
            raise UsageError(
                f"target {target}: a table belongs to a compute capability; name that of the GPU, such as {target.backend}:sm80"
            )
    return targets


def _operators(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    for name in names:
        if name not in OPERATORS:
            raise UsageError(
                f"--operators {name}: not among those that are measured{did_you_mean(name, OPERATORS)}; they are {', '.join(OPERATORS)}"
            )
    return names


def _paths(
    targets: tuple[Target, ...], output: Path | None, folder: Path | None
) -> tuple[Path, ...]:
    if output and folder:
        raise UsageError("-o and --output-folder exclude each other; name one")
    if output and len(targets) > 1:
        raise UsageError("-o takes one target's table; pass --output-folder for several")
    if folder and not folder.is_dir():
        raise UsageError(f"{folder}: is no folder; make it first")
    return (
        tuple(folder / f"{t.backend}-sm{t.sm}.yaml" for t in targets)
        if folder
        else (output,)
        if output
        else ()
    )
