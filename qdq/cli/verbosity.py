"""How much the commands say: `--verbose`, `--quiet` and `--log`, before and after a command."""

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
from qdq.cli.options import OUTPUT_FILE
from qdq.errors import UsageError
from qdq.files.command_files import note_output
from qdq.memory import read_peak_memory
from qdq.printable import escape_unprintable
from qdq.stage_log import LOGGER

#: Keys of click's `meta`: the words of the command line, and what was chosen.
COMMAND_LINE = "qdq.command-line"
_QUIET = "qdq.quiet"
_VERBOSE = "qdq.verbose"
_LOG = "qdq.log"

#: Names of the parameters.
VERBOSITY_PARAMETERS = ("verbose", "quiet", "log")

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


def add_verbosity(command: click.Command) -> click.Command:
    """Return a command with `--verbose`, `--quiet` and `--log`, and so its subcommands."""
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            add_verbosity(subcommand)
    elif "quiet" not in {parameter.name for parameter in command.params}:
        command.params += make_verbosity_options()
    return command


def make_verbosity_options() -> list[click.Parameter]:
    """Return the three options. They act as they are read, and pass the command nothing."""
    return [
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_choose_verbose,
            help="Print stages with their times, sessions and versions on standard error.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_choose_quiet,
            help="Print errors and results alone: no progress, no summary of what was written.",
        ),
        click.Option(
            ["--log"],
            type=OUTPUT_FILE,
            expose_value=False,
            callback=_choose_log,
            metavar="FILE",
            help="Append what --verbose prints, errors and progress to FILE, with dates.",
        ),
    ]


def is_quiet() -> bool:
    """Whether the command that runs was called with `--quiet`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def verbosity_words(ctx: click.Context) -> list[str]:
    """Return the words that pass on what was chosen to another command line."""
    words = []
    if ctx.meta.get(_VERBOSE):
        words.append("--verbose")
    if ctx.meta.get(_QUIET):
        words.append("--quiet")
    if ctx.meta.get(_LOG):
        words.append(f"--log={ctx.meta[_LOG]}")
    return words


def protect_log(ctx: click.Context) -> None:
    """Raise UsageError where the log that was named before the command is one of its files."""
    path: Path | None = ctx.meta.get(_LOG)
    if path is not None:
        note_output(path, "--log", rewritable=True)


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


def _choose_verbose(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing or ctx.meta.get(_VERBOSE):
        return
    _refuse_both(ctx, _QUIET)
    ctx.meta[_VERBOSE] = True
    handler = _StandardErrorHandler(logging.INFO)
    handler.setFormatter(_ElapsedFormatter())
    _begin_record(ctx, handler)


def _choose_quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        _refuse_both(ctx, _VERBOSE)
        ctx.meta[_QUIET] = True


def _refuse_both(ctx: click.Context, other: str) -> None:
    if ctx.meta.get(other):
        raise UsageError("--verbose and --quiet exclude each other. Pass one of them.")


def _choose_log(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None or ctx.resilient_parsing:
        return
    if ctx.meta.get(_LOG):
        raise UsageError("--log is passed twice. Pass it once.")
    handler = _open_log(path)
    ctx.meta[_LOG] = path
    handler.setFormatter(_PrintableFormatter(_FILE_FORMAT))
    _begin_record(ctx, handler)


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


def _begin_record(ctx: click.Context, handler: logging.Handler) -> None:
    """Record from now on, beginning with the command line and versions."""
    _handlers.append(handler)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    words: Sequence[str] = ctx.meta.get(COMMAND_LINE, ())
    versions = [f"{name} {_find_version(name)}" for name in _PACKAGES]
    head = f"qdq {__version__}, Python {platform.python_version()}, {', '.join(versions)}"
    for line in (f"{shlex.join(('qdq', *words))}", head):
        handler.handle(LOGGER.makeRecord("qdq", logging.INFO, "", 0, line, (), None))


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
