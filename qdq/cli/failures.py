"""What ends a command before its time: one line on standard error, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import sys

import click

from qdq.errors import QdqError, first_line
from qdq.printable import escape_unprintable, shorten

COULD_NOT_RUN = 2
UNFORESEEN = 3
INTERRUPTED = 130

#: Errors of a stream that is full, broken or closed.
_STREAM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def report_failure(error: BaseException, debug: bool = False) -> int:
    """Print why a command ended in one line, with `debug` the traceback too; return its code.

    The code is 2 for what the user or the system can mend, 3 for what nobody foresaw.
    """
    if debug and not isinstance(error, click.ClickException):
        import traceback

        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        return print_failure(_format_click_error(error))
    if isinstance(error, QdqError):
        return print_failure(str(error).strip(), error.exit_code)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        advice = str(error.__cause__ or error)  # of `resumable`, which click wraps in an Abort
        return print_failure(f"interrupted. {advice}".rstrip(), INTERRUPTED)
    if isinstance(error, MemoryError):
        detail = first_line(error) if str(error).strip() else "the model and the data do not fit"
        return print_failure(f"not enough memory: {detail.rstrip('.')}. Use a smaller batch.")
    if isinstance(error, OSError):
        return print_failure(_format_system_error(error))
    return print_failure(_format_unforeseen(error), UNFORESEEN)


def print_failure(message: str, code: int = COULD_NOT_RUN) -> int:
    """Print a message in one line on standard error, if it is open, and return an exit code."""
    from qdq.stage_log import LOGGER  # whose import would be time of `qdq --help`

    line = shorten(escape_unprintable(message))
    LOGGER.error("%s", line)
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"qdq: {line}", err=True)
    return code


def _format_click_error(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx:
        return f"{message.rstrip('.')}. Run '{error.ctx.command_path} --help' for help."
    return message


def _format_system_error(error: OSError) -> str:
    """Return the sentence for an error of the operating system: its file, or the output stream."""
    reason = (error.strerror or first_line(error)).rstrip(".")
    if error.filename is not None:
        return f"{error.filename}: {reason}. Fix the file or its permissions."
    if error.errno in _STREAM_ERRORS:
        return f"standard output cannot be written: {reason}. Write it to another place."
    return f"the system refused a request: {reason}. Run with --debug for the place."


def _format_unforeseen(error: BaseException) -> str:
    summary = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
    return (
        f"an error that qdq does not foresee: {summary}. Please report it{_report_place()}, with "
        f"the traceback that 'qdq --debug {_command_name()}...' prints."
    )


def _command_name() -> str:
    """Return the command on the command line, with a space after it."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    return f"{words[0]} " if words else ""


def _report_place() -> str:
    """Return where errors are reported, by the package's metadata; "" where that names no page."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("qdq").get_all("Project-URL") or []
    except PackageNotFoundError:
        return " to the project's issues"
    pages = dict(url.split(", ", 1) for url in urls if ", " in url)
    for label in ("Issues", "Repository", "Homepage"):
        if label in pages:
            return f" at {pages[label]}"
    return " to the project's issues"
