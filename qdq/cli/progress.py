"""Progress on standard error, and checkpoints of interrupted runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from qdq.files.output import remove_output
from qdq.interruption import advise_resuming, set_checkpoint
from qdq.observers.collection import Observing

_MEGA = 1_000_000

#: Clears the line of a terminal, from its beginning and from the cursor on.
_CLEAR_LINE = "\r\033[K"
_CLEAR_REST = "\033[K"


@contextmanager
def resumable(observing: Observing) -> Iterator[None]:
    """Remove the checkpoint at the end; if the run is interrupted, name it in the error."""
    checkpoint = observing.checkpoint
    set_checkpoint(str(checkpoint or ""))
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(advise_resuming()) from error
    finally:
        set_checkpoint("")
    if checkpoint:
        remove_output(checkpoint)


@contextmanager
def progress(
    label: str, total: int | None = None, unit: str = "samples", resumed: bool = False
) -> Iterator[Callable[..., None]]:
    """Give a callback that shows a count on standard error while that is a terminal.

    The callback takes the count, and the total where `total` is not known beforehand. After the
    count follow the estimated time that remains and the peak memory of the process. In a run that
    is `resumed`, the first count is what earlier runs did.
    """
    is_shown = sys.stderr.isatty()
    start = time.monotonic()
    first_count = None if resumed else 0

    def advance(done: int, of: int | None = total) -> None:
        nonlocal first_count
        if first_count is None:
            first_count = done
        if not is_shown:
            return
        count = f"{done} of {of}" if of else f"{done}"
        parts = [f"{label}: {count} {unit}"]
        new_count = done - first_count
        if of and new_count > 0:
            seconds_each = (time.monotonic() - start) / new_count
            parts.append(_format_remaining(seconds_each * (of - done)))
        memory = _peak_memory()
        if memory:
            parts.append(f"{memory} MB at most")
        click.echo(f"\r{', '.join(parts)}{_CLEAR_REST}", err=True, nl=False)

    try:
        yield advance
    finally:
        if is_shown:
            click.echo(_CLEAR_LINE, err=True, nl=False)


def _format_remaining(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes:
        return f"{minutes} min {rest} s left"
    return f"{rest} s left"


def _peak_memory() -> int:
    """Return the peak memory of this process in MB; 0 where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // _MEGA
