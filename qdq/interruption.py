"""The end of the command on Ctrl-C (SIGINT), SIGTERM and SIGHUP.

The process ends inside the signal's handler. An exception would unwind through other libraries,
and some of them turn it into another error: an extension module that is being imported fails with
`initialization failed`.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: The signals that end the command. Windows has no SIGHUP.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

#: Added to a signal's number, the exit code of a process that it ended.
_ENDED_BY_SIGNAL = 128

_CLEAR_LINE = "\r\033[K"


#: Functions that remove what the process would leave.
_cleanups: list[Callable[[], None]] = []


class _Run:
    """The run that a signal would end."""

    #: The path of its checkpoint, "" for none.
    checkpoint = ""
    #: Whether the end waits for `DelayedEnd`, and the signal that came meanwhile, 0 for none.
    is_delayed = False
    pending = 0
    #: Whether the end is silent.
    is_quiet = False


class DelayedEnd:
    """Delays the end on a first signal until the end of a block; a second one ends at once.

    Use as a context manager, around the start of child processes.
    """

    def __enter__(self) -> None:
        _Run.is_delayed = True

    def __exit__(self, *_: object) -> None:
        _Run.is_delayed = False
        if _Run.pending:
            _end(_Run.pending, None)


def end_on_signals() -> None:
    """End this process on a signal: with one line on standard error and exit code 128 + number.

    A signal that the process ignores, as under `nohup`, stays ignored.
    """
    for number in _list_signals():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def end_quietly_on_signals() -> None:
    """End this process on a signal as `end_on_signals` does, without a line on standard error.

    The process may be a copy of one whose end was delayed.
    """
    _Run.is_quiet = True
    _Run.is_delayed = False
    end_on_signals()


def clean_before_end(cleanup: Callable[[], None]) -> None:
    """Register a function that removes what the process would leave when a signal ends it."""
    _cleanups.append(cleanup)


def set_checkpoint(path: str) -> None:
    """Set the checkpoint that is named when a signal ends the process; "" for none."""
    _Run.checkpoint = path


def advise_resuming() -> str:
    """Return the sentence that names the checkpoint of the run, or "" where there is none."""
    path = _Run.checkpoint
    if path and os.path.exists(path):
        return f"Pass --resume to continue from {path}."
    return ""


def _end(number: int, frame: FrameType | None) -> None:
    """End the process; further signals are ignored meanwhile."""
    if _Run.is_delayed and not _Run.pending:
        _Run.pending = number
        return
    try:
        for other in _list_signals():
            signal.signal(other, signal.SIG_IGN)
        if not _Run.is_quiet:
            os.write(2, _describe_end(number).encode())
    except (OSError, ValueError):
        pass  # nobody reads standard error, or this is another thread
    try:
        for cleanup in _cleanups:
            cleanup()
    finally:
        os._exit(_ENDED_BY_SIGNAL + number)


def _list_signals() -> list[int]:
    return [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]


def _describe_end(number: int) -> str:
    """Return the line for standard error."""
    clear = _CLEAR_LINE if os.isatty(2) else ""
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    sentences = f"interrupted{name}. {advise_resuming()}".rstrip()
    return f"{clear}qdq: {sentences}\n"
