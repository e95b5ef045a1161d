"""Options of how samples are run: device, memory, processes and checkpoints."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from qdq.cli.options import collect_options, ort_library_option
from qdq.errors import UsageError
from qdq.files.command_files import note_output
from qdq.observers.collection import CHECKPOINT_INTERVAL, Observing
from qdq.ranges.tensor_ranges import Part

#: The options that `observing_options` adds.
OBSERVING_OPTIONS = (
    "device",
    "max_memory",
    "workers",
    "scheduler",
    "resume",
    "checkpoint_every",
    "ort_library",
)

#: The suffix of an output's checkpoint.
_CHECKPOINT = ".checkpoint"

#: Bytes that file systems allow in a name.
_MAX_NAME_BYTES = 255

#: Characters of a longer name that the checkpoint's name keeps.
_KEPT_CHARACTERS = 60

_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?)B", re.IGNORECASE)
_UNITS = {
    "k": 10**3,
    "ki": 2**10,
    "m": 10**6,
    "mi": 2**20,
    "g": 10**9,
    "gi": 2**30,
    "t": 10**12,
    "ti": 2**40,
}


def _collect_observing(  # noqa: PLR0913, PLR0917 all are options, passed by name
    device: str,
    max_memory: str | None,
    workers: int | None,
    scheduler: str | None,
    resume: bool,
    checkpoint_every: float,
    ort_library: tuple[Path, ...],
) -> Observing:
    """Return how samples are run. The command has -o and --force, and may have --shard."""
    if workers and scheduler:
        raise UsageError(
            "--workers and --scheduler exclude each other. Pass --workers to start processes "
            "on this machine, or --scheduler to use a running cluster."
        )
    parameters = click.get_current_context().params
    checkpoint = _checkpoint_path(parameters["output"])
    note_output(checkpoint, "the checkpoint", rewritable=True)
    replace = resume or parameters["force"]
    if not replace and os.path.exists(checkpoint):
        raise UsageError(
            f"{checkpoint}: an interrupted run left this checkpoint. "
            "Pass --resume to continue it or --force to start over."
        )
    return Observing(
        part=_parse_shard(parameters.get("shard")),
        device=device,
        max_memory=_parse_memory(max_memory),
        checkpoint=checkpoint,
        resume=resume,
        interval=checkpoint_every,
        workers=workers,
        scheduler=scheduler,
        ort_libraries=ort_library,
    )


def _checkpoint_path(output: Path) -> Path:
    """Return the path of an output's checkpoint, which is in the same folder."""
    name = output.name + _CHECKPOINT
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = output.name[:_KEPT_CHARACTERS] + _CHECKPOINT
    return output.with_name(name)


def _parse_shard(text: str | None) -> Part:
    if not text:
        return Part()
    match = _SHARD.fullmatch(text)
    if match is not None:
        number, count = int(match[1]), int(match[2])
        if number <= count:
            return Part(number, count)
    raise UsageError(
        f"--shard {text!r}: a shard has the form I/N, with I from 1 to N. Pass one such as 2/8."
    )


def _parse_memory(text: str | None) -> int | None:
    """Return a size in bytes."""
    if not text:
        return None
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--max-memory {text!r}: a size is a number and a unit. Pass one such as 4GB or 500MiB."
        )
    unit = _UNITS[match[2].lower()]
    return int(float(match[1]) * unit)


#: Adds the options of how samples are run, which the command receives as one `observing`.
observing_options = collect_options(
    _collect_observing,
    click.option(
        "--device",
        default="cpu",
        show_default=True,
        help="Device that runs the samples: cpu, cuda, or cuda,cpu for CUDA where it is present.",
    ),
    click.option(
        "--max-memory",
        metavar="SIZE",
        help="Memory limit, such as 4GB. The samples are run in several passes "
        "where the tensors' statistics would exceed it.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Distribute the samples over up to N processes (Dask), where that is faster.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Distribute the samples over a Dask cluster, such as tcp://host:8786.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Continue from the checkpoint that an interrupted run left beside the output.",
    ),
    click.option(
        "--checkpoint-every",
        type=click.FloatRange(min=0),
        default=CHECKPOINT_INTERVAL,
        show_default=True,
        metavar="SECONDS",
        help="Seconds between checkpoints; an interrupted run loses at most this much.",
    ),
    ort_library_option,
    name="observing",
)
