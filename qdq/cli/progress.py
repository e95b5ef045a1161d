"""Progress on standard error, and checkpoints of interrupted runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from qdq.files.output import remove_output
from qdq.observers.collection import Observing


@contextmanager
def resumable(observing: Observing) -> Iterator[None]:
    """Remove the checkpoint once all is written; say where it lies when the run is interrupted."""
    kept = observing.checkpoint
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"--resume goes on from {kept}" if kept and kept.exists() else ""
        ) from error
    if kept:
        remove_output(kept)


@contextmanager
def progress(
    label: str, total: int | None = None, unit: str = "samples", resumed: bool = False
) -> Iterator[Callable[..., None]]:
    """Give a callback that counts on standard error while it is a terminal, out of `total` or of the number it is given.

    Behind the count stand the time left, as long as what is done took, and the most memory that the process has held. Of
    a run that is `resumed`, what the first call counts was done before.
    """
    shown, began, before = sys.stderr.isatty(), time.monotonic(), None if resumed else 0

    def advance(done: int, of: int | None = total) -> None:
        nonlocal before
        before = done if before is None else before
        if shown:
            left = (
                [_duration((time.monotonic() - began) / (done - before) * (of - done))]
                if of and done > before
                else []
            )
            held = [f"{memory} MB at most"] if (memory := _most_memory()) else []
            count = f"{label}: {done}{f' of {of}' if of else ''} {unit}"
            click.echo(f"\r{', '.join([count, *left, *held])}\033[K", err=True, nl=False)

    try:
        yield advance
    finally:
        if shown:
            click.echo("\r\033[K", err=True, nl=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"


def _most_memory() -> int:
    """Return the most memory that this process has held, in MB; 0 where the system does not tell, as on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 1_000_000
