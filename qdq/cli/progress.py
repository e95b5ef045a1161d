"""Progress on standard error, and checkpoints of interrupted runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from qdq.cli.verbosity import is_quiet
from qdq.files.output import remove_output
from qdq.interruption import advise_resuming, set_checkpoint
from qdq.memory import read_peak_memory
from qdq.observers.collection import Observing
from qdq.stage_log import LOGGER

#: Seconds after which a line is due where standard error is no terminal, and the share of the work
#: after which one is due earlier, though not before some seconds.
_LINE_SECONDS = 30.0
_LINE_SHARE = 0.1
_LEAST_LINE_SECONDS = 5.0

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
    """Give a callback that shows a count on standard error.

    A terminal shows it in place. Elsewhere a long run prints a line now and then. `--quiet` shows
    none, and `--log` records those lines. The callback takes the count, and the total where `total`
    is not known beforehand. After the count follow the estimated time that remains and the peak
    memory of the process. In a run that is `resumed`, the first count is what earlier runs did.
    """
    shown = _Progress(label, total, unit, resumed)
    try:
        yield shown.advance
    finally:
        shown.end()


class _Progress:
    """A count of work that is shown as it grows."""

    def __init__(self, label: str, total: int | None, unit: str, is_resumed: bool) -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._is_in_place = sys.stderr.isatty() and not is_quiet()
        self._has_lines = not self._is_in_place and _is_file(sys.stderr) and not is_quiet()
        self._start = time.monotonic()
        self._first_count = None if is_resumed else 0
        #: When the last line was printed, and the count in it.
        self._last_line = self._start
        self._last_count = 0

    def advance(self, done: int, of: int | None = None) -> None:
        """Show how much of the work is done."""
        of = self._total if of is None else of
        if self._first_count is None:
            self._first_count = self._last_count = done
        now = time.monotonic()
        is_due = self._is_line_due(done, of, now)
        if not is_due and not self._is_in_place:
            return
        text = self._describe(done, of, now)
        if self._is_in_place:
            click.echo(f"\r{text}{_CLEAR_REST}", err=True, nl=False)
        if is_due:
            self._last_line, self._last_count = now, done
            LOGGER.debug("%s", text)
            if self._has_lines:
                click.echo(text, err=True)

    def end(self) -> None:
        """Remove the count from a terminal."""
        if self._is_in_place:
            click.echo(_CLEAR_LINE, err=True, nl=False)

    def _is_line_due(self, done: int, of: int | None, now: float) -> bool:
        seconds = now - self._last_line
        if seconds >= _LINE_SECONDS:
            return True
        has_advanced = bool(of) and done - self._last_count >= _LINE_SHARE * (of or 0)
        return has_advanced and seconds >= _LEAST_LINE_SECONDS

    def _describe(self, done: int, of: int | None, now: float) -> str:
        count = f"{done} of {of}" if of else f"{done}"
        parts = [f"{self._label}: {count} {self._unit}"]
        new_count = done - (self._first_count or 0)
        if of and new_count > 0:
            seconds_each = (now - self._start) / new_count
            parts.append(_format_remaining(seconds_each * (of - done)))
        memory = read_peak_memory()
        if memory:
            parts.append(f"{memory} MB at most")
        return ", ".join(parts)


def _is_file(stream: TextIO) -> bool:
    """Whether a stream is one of the system, and not text that is kept in memory."""
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _format_remaining(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes:
        return f"{minutes} min {rest} s left"
    return f"{rest} s left"
