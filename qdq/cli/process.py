"""The process of a command: a parent waits for it, so that a crash in C++ ends in one line too.

ONNX, ONNX Runtime and TensorRT end the process that calls them where they fail an assertion, and
the system ends one that takes too much memory. The parent is forked before anything is imported.
It only waits, passes signals on, and ends as its child does. Systems without `sigwaitinfo`, which
tells a terminal's signals from those of another process, run the command without a parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from qdq.cli.failures import INTERRUPTED, print_failure

_CAN_SUPERVISE = hasattr(os, "fork") and hasattr(signal, "sigwaitinfo")

#: Linux's request for a signal when the parent ends (prctl(2)), so that no child outlives it.
_SET_PARENT_DEATH_SIGNAL = 1

#: The origin of a signal that the kernel sends, as for Ctrl-C on a terminal (sigaction(2)).
_FROM_KERNEL = 0x80
_TERMINAL = "/dev/tty"

#: The file descriptors of standard input, output and error.
_STREAMS = (0, 1, 2)
_STANDARD_ERROR = 2


def run_supervised(command: Callable[[], int]) -> NoReturn:
    """Run a command in a child process and end as it ends, at once.

    A child that a library in C++ or the system ends is reported in one line, with exit code 2.
    """
    if not _CAN_SUPERVISE:
        _end(command())
    passed_on = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    awaited = {*passed_on, signal.SIGCHLD}
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    parent = os.getpid()
    shares_terminal = _is_in_foreground()
    try:
        child = os.fork()
    except OSError:  # no further process is allowed
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        _end(command())
    if not child:
        end_with_parent(parent)
        if not shares_terminal:
            os.setpgid(0, 0)  # a signal to the parent's group comes once, from the parent
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        _end(command())
    _end_like_child(_wait_for(child, awaited, shares_terminal))


def _end(code: int) -> NoReturn:
    """End the process, without freeing the memory of models first."""
    for stream in (sys.stdout, sys.stderr):
        # A reader may have gone away, and the streams may be closed.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def end_with_parent(parent: int) -> None:
    """Let the system end this process when its parent ends, even if that is killed.

    `parent` is the number of the process that started this one.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(INTERRUPTED)


def _is_in_foreground() -> bool:
    """Whether a terminal sends its signals, such as that of Ctrl-C, to this process's group."""
    try:
        terminal = os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _wait_for(child: int, awaited: set[signal.Signals], shares_terminal: bool) -> int:
    """Return the status of a child when it has ended; pass signals on to it meanwhile.

    A terminal's signal comes to a child that shares the terminal without help.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored one would take the status along
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        arrived = signal.sigwaitinfo(awaited)
        has_come = shares_terminal and arrived.si_code == _FROM_KERNEL
        if arrived.si_signo != signal.SIGCHLD and not has_come:
            os.kill(child, arrived.si_signo)


def _end_like_child(status: int) -> NoReturn:
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    reason = describe_end(number)
    if reason:
        os._exit(print_failure(f"{_command_line()}: {reason}"))
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def describe_end(number: int) -> str:
    """Return fact and fix of a process that a signal ended; "" for signals that users send."""
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        fact = "the system ended it (SIGKILL), as it does where memory runs out"
        return f"{fact}. Use a smaller batch or --max-memory."
    if number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        fact = f"a library in C++ crashed ({name}), such as ONNX Runtime on a model it cannot run"
        return f"{fact}. Check the shapes in the model."
    return ""


def _command_line() -> str:
    return " ".join(sys.argv[1:])


def open_streams() -> None:
    """Open the standard streams that are closed, so that no output file takes their place.

    Text in another encoding than the stream's is escaped.
    """
    for stream in _STREAMS:
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(_STANDARD_ERROR, "w", errors="backslashreplace", closefd=False)
    for output in (sys.stdout, sys.stderr):
        if output is not None and hasattr(output, "reconfigure"):
            output.reconfigure(errors="backslashreplace")
