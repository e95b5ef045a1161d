"""The record of one command, on standard error and in a log: `--verbose` and `--log`."""

from __future__ import annotations

import logging
import platform
import re
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from qdq import __version__
from qdq.errors import UsageError
from qdq.memory import read_peak_memory
from qdq.printable import escape_unprintable
from qdq.stage_log import LOGGER

#: Clears the line of a terminal that progress is on.
_CLEAR_LINE = "\r\033[K"

#: The packages whose versions a record begins with; others are recorded at their first use.
_PACKAGES = ("onnx", "numpy")

#: The beginning of a log: the date, the time and the level of its first record.
_DATE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
_DATE_LENGTH = 24

_FILE_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _PrintableFormatter(logging.Formatter):
    """Writes a record in one line, whatever names of a model are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return escape_unprintable(super().formatMessage(record))


class _ElapsedFormatter(_PrintableFormatter):
    """Writes a record behind the seconds since the command began."""

    def __init__(self) -> None:
        super().__init__("%(message)s")
        self._start = time.time()

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return f"[{record.created - self._start:6.2f} s] {super().formatMessage(record)}"


class _StandardErrorHandler(logging.Handler):
    """Prints records on standard error but for warnings and errors, which are printed anyway."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        if record.levelno >= logging.WARNING:
            return
        clearing = _CLEAR_LINE if sys.stderr.isatty() else ""
        click.echo(f"{clearing}{self.format(record)}", err=True)


#: The handlers of the command that runs, and when it began.
_handlers: list[logging.Handler] = []


def record_on_standard_error(words: Sequence[str]) -> None:
    """Record on standard error from now on, but for what only a log has."""
    handler = _StandardErrorHandler(logging.INFO)
    handler.setFormatter(_ElapsedFormatter())
    _begin_record(words, handler)


def record_in_file(words: Sequence[str], path: Path) -> None:
    """Record at the end of a file from now on; raises UsageError for a file that is no log."""
    handler = _open_log(path)
    handler.setFormatter(_PrintableFormatter(_FILE_FORMAT))
    _begin_record(words, handler)


def end_record(code: int) -> None:
    """Record the exit code of a command, and its memory, and record no more."""
    if not _handlers:
        return
    LOGGER.info("ends with exit code %d, %d MB of memory at most", code, read_peak_memory())
    for handler in _handlers:
        LOGGER.removeHandler(handler)
        handler.close()
    _handlers.clear()
    LOGGER.setLevel(logging.NOTSET)


def _open_log(path: Path) -> logging.Handler:
    """Return a handler that appends to a log; raises UsageError for a file that is none."""
    try:
        if path.is_file() and not _is_log(path):
            raise UsageError(f"{path}: the file exists, and is no log of qdq. Pass another file.")
        return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"{path}: the log cannot be written: {reason}. Pass another file."
        ) from error


def _is_log(path: Path) -> bool:
    """Whether a file is empty or begins as a log of this module does."""
    with path.open("rb") as file:
        beginning = file.read(_DATE_LENGTH)
    return not beginning or _DATE.fullmatch(beginning) is not None


def _begin_record(words: Sequence[str], handler: logging.Handler) -> None:
    """Record from now on, beginning with the command line and versions."""
    _handlers.append(handler)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    versions = [f"{name} {_find_version(name)}" for name in _PACKAGES]
    head = f"qdq {__version__}, Python {platform.python_version()}, {', '.join(versions)}"
    for line in (shlex.join(("qdq", *words)), head):
        handler.handle(LOGGER.makeRecord("qdq", logging.INFO, "", 0, line, (), None))


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
