"""The reference page of the command line, generated from its commands and options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from qdq.reports.markdown import escape_prose, format_table, join_parts
from qdq.reports.reference_pages import GENERATED

_PROGRAM = "qdq"

#: What click replaces by a newline that it keeps.
_KEEP_LINES = "\b"


def commands_page(group: click.Group) -> str:
    """Return every command of the command line as Markdown, one section per command.

    A section has the command's usage, its help, and the table of its options.
    """
    context = click.Context(group, info_name=_PROGRAM, **group.context_settings)
    parts = [
        "# Commands",
        f"{GENERATED} `qdq COMMAND --help` prints the same.",
        *_command_parts(group, context),
    ]
    for name, command, parent in _list_commands(group, context):
        command_context = click.Context(command, info_name=command.name, parent=parent)
        parts += [f"## {name}", *_command_parts(command, command_context)]
    return join_parts(parts)


def _list_commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield the commands of a group and of the groups in it: name, command and parent context."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            continue
        yield f"{context.command_path} {name}", command, context
        if isinstance(command, click.Group):
            inner = click.Context(command, info_name=name, parent=context)
            yield from _list_commands(command, inner)


def _command_parts(command: click.Command, context: click.Context) -> list[str]:
    """Return the usage, the help and the options of a command as paragraphs."""
    pieces = " ".join(command.collect_usage_pieces(context))
    parts = [_format_code(f"{context.command_path} {pieces}"), *_help_parts(command)]
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            description = escape_prose(" ".join(record[1].split()))
            rows.append((f"`{record[0]}`", description.replace("[", r"\[")))
    parts.append(format_table(("option", ""), rows))
    return parts


def _help_parts(command: click.Command) -> Iterator[str]:
    """Yield the paragraphs of a help text; those whose lines click keeps are code."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        kept = paragraph.removeprefix(f"{_KEEP_LINES}\n")
        if kept == paragraph:
            yield escape_prose(" ".join(paragraph.split()))
            continue
        heading, _, lines = kept.partition("\n")
        yield heading
        yield _format_code(inspect.cleandoc(lines))


def _format_code(lines: str) -> str:
    return f"```\n{lines}\n```"
