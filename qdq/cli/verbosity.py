"""How much the commands say: `--verbose`, `--quiet` and `--log`, before and after a command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qdq.errors import UsageError

#: Keys of click's `meta`: the words of the command line, and what was chosen.
COMMAND_LINE = "qdq.command-line"
_QUIET = "qdq.quiet"
_VERBOSE = "qdq.verbose"
_LOG = "qdq.log"

#: The module that records, which is imported where a record is asked for.
_RECORD_MODULE = "qdq.cli.run_record"

#: Names of the parameters.
VERBOSITY_PARAMETERS = ("verbose", "quiet", "log")


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
            type=click.Path(path_type=Path),
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
        from qdq.files.command_files import note_output

        note_output(path, "--log", rewritable=True)


def end_record(code: int) -> None:
    """End the record of a command, if there is one, with its exit code."""
    if _RECORD_MODULE in sys.modules:
        from qdq.cli.run_record import end_record as end

        end(code)


def _choose_verbose(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing or ctx.meta.get(_VERBOSE):
        return
    _refuse_both(ctx, _QUIET)
    from qdq.cli.run_record import record_on_standard_error

    ctx.meta[_VERBOSE] = True
    record_on_standard_error(ctx.meta.get(COMMAND_LINE, ()))


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
    from qdq.cli.run_record import record_in_file

    record_in_file(ctx.meta.get(COMMAND_LINE, ()), path)
    ctx.meta[_LOG] = path
    protect_log(ctx)
