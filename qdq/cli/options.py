"""Options that most commands share, and how commands receive options as records."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from qdq.files.command_files import note_input, note_output

Command = TypeVar("Command", bound=Callable[..., Any])

#: A decorator that adds an option to the function of a command.
OptionDecorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _InputType(click.Path):
    """A path that the command reads. The reader checks that it exists, with a specific message."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        note_input(path)
        return path


class _OutputType(click.Path):
    """A path that the command writes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        note_output(path, role=param.opts[0] if param else "")
        return path


#: A file that the command reads: none of its outputs may replace it.
FILE = _InputType(path_type=Path)

#: A file that the command writes: no input, and no other output. `check_output` checks its place.
OUTPUT_FILE = _OutputType(path_type=Path)

#: A folder, or a path that the command may not read. Its files are recorded where they are opened.
PATH = click.Path(path_type=Path)


def combine_options(*options: OptionDecorator) -> Callable[[Command], Command]:
    """Return a decorator that adds several options to a command, in this order."""

    def decorate(command: Command) -> Command:
        decorated: Callable[..., Any] = command
        for option in reversed(options):
            decorated = option(decorated)
        return cast(Command, decorated)

    return decorate


def collect_options(
    make: Callable[..., object], *options: OptionDecorator, name: str = "options"
) -> Callable[[Command], Command]:
    """Return a decorator that adds options and passes the command one value made of them.

    `make` is a record type or a function. Its parameters are the names of the options, which are
    removed from the keyword arguments that click passes. The command receives the value as `name`.
    """
    parameters = tuple(inspect.signature(make).parameters)

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(*args: Any, **keywords: Any) -> Any:
            values = {parameter: keywords.pop(parameter) for parameter in parameters}
            keywords[name] = make(**values)
            return function(*args, **keywords)

        return combine_options(*options)(cast(Command, command))

    return decorate


def is_on_command_line(ctx: click.Context, name: str) -> bool:
    """Return whether a parameter was passed, and is no default of the project file or of qdq."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


#: Adds ``--force``.
force_option = click.option("--force", is_flag=True, help="Replace existing files.")

#: Adds ``--jobs``.
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Work on N models at the same time, each in a process of its own.",
)

#: Adds ``-o`` and ``--force``.
output_options = combine_options(
    click.option(
        "-o", "--output", type=OUTPUT_FILE, required=True, metavar="OUT", help="File to write."
    ),
    force_option,
)

#: Adds ``-o`` for one model, ``--out-dir`` and ``--jobs`` for several, and ``--force``.
fleet_output_options = combine_options(
    click.option("-o", "--output", type=OUTPUT_FILE, metavar="OUT", help="File to write."),
    click.option(
        "--out-dir",
        type=PATH,
        metavar="FOLDER",
        help="Folder to write several models into, under their names. "
        "{stem} and {folder} in other options stand for the name of each model and of its folder.",
    ),
    jobs_option,
    force_option,
)

#: Adds ``--format``, which the command receives as `layout`.
format_option = click.option(
    "--format",
    "layout",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output for people (text) or for programs (json).",
)

#: Adds ``--ort-library``, which the command receives as `ort_library`.
ort_library_option = click.option(
    "--ort-library",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Library of custom operators for ONNX Runtime; repeat for several.",
)
