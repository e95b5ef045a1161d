"""The command `qdq`: commands are imported when they are called, so that help comes at once."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from qdq import __version__
from qdq.errors import QdqError

#: Commands in the order of the work, with the line that `qdq --help` shows.
COMMANDS = {
    "quantize": "ONNX file in, Q/DQ file out: plan, calibrate, apply and check in one.",
    "plan": "Decide for every edge whether it gets a pair, and say by which rule.",
    "explain": "Say why the inputs of a node, or the readers of a tensor, are quantized or not.",
    "calibrate": "Run the float model over data and compute the plan's scales.",
    "ranges": "Merge what parts of the samples gave; turn ranges into TensorRT's calibration cache, YAML or JSON.",
    "apply": "Write the model with the pairs of a plan and its scales.",
    "strip": "Take the Q/DQ pairs out of a model again.",
    "check": "Find where models' Q/DQ differ from the rules, or would be refused.",
    "diff": "Print which pairs two models differ in: added, removed, moved and rescaled.",
    "validate": "Compare float and quantized model in ONNX Runtime and in TensorRT's engines.",
    "probe": "Measure which layers a target runs in INT8 and FP8, as a kernel table.",
    "test": "Run the cases of rule files.",
    "facts": "List the words that rules may use.",
    "rules": "List or show rules with their reasons; write their schema and documents.",
    "new-rule": "Write a rule and its cases to start from.",
}

#: Commands that a project file gives defaults to.
PROJECT_COMMANDS = ("quantize", "plan", "explain", "calibrate", "check", "validate")
_INTERRUPTED = 130
_HELP = "qdq.help"


class _Lazy(click.Group):
    """A group whose commands live in modules of their own names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_HELP] = not {"-h", "--help"}.isdisjoint(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
        except click.exceptions.Exit:  # how commands end that found something
            self._say_project(ctx)
            raise
        self._say_project(ctx)
        return code

    def _say_project(self, ctx: click.Context) -> None:
        """Say on standard error which project file gave the command defaults."""
        if ctx.obj is None or not (command := self.get_command(ctx, ctx.invoked_subcommand or "")):
            return
        options = {p.name for p in command.params}
        if keys := [key for key in ctx.obj.keys if not options.isdisjoint(ctx.obj.options_of(key))]:
            click.echo(f"project file {os.path.relpath(ctx.obj.path)}: {', '.join(keys)}", err=True)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(
            f"qdq.cli.{name.replace('-', '_')}"
        ).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from qdq.errors import did_you_mean

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(
                f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}; 'qdq --help' lists them"
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Lazy,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("--no-project", is_flag=True, help="Ignore the project file.")
@click.version_option(__version__, prog_name="qdq")
@click.pass_context
def cli(ctx: click.Context, no_project: bool) -> None:
    """Put QuantizeLinear/DequantizeLinear pairs where TensorRT wants them, and prove the result.

    \b
    Example:
      qdq quantize model.onnx -o model.int8.onnx --data samples/ --target rtx:sm86
      qdq validate model.onnx model.int8.onnx --data samples/ --target rtx:sm86

    A project file, qdq.yaml or [tool.qdq] in pyproject.toml, here or above, gives defaults for --rules,
    --target, --data and others.

    Exit codes: 0 clean, 1 findings, 2 could not run.
    """
    if ctx.invoked_subcommand in PROJECT_COMMANDS and not no_project and not ctx.meta[_HELP]:
        from qdq.cli.project_file import find_project

        ctx.obj = find_project(Path.cwd())
        ctx.default_map = {ctx.invoked_subcommand: ctx.obj.options} if ctx.obj else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on standard error."""
    try:
        code = cli.main(
            args=None if argv is None else list(argv), prog_name="qdq", standalone_mode=False
        )
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        click.echo(f"qdq: {_one_line(error)}", err=True)
        return 2
    except QdqError as error:
        click.echo(f"qdq: {' '.join(str(error).split())}", err=True)
        return error.exit_code
    except MemoryError as error:
        click.echo(
            f"qdq: not enough memory: {' '.join(str(error).split()) or 'for this model and data'}; use a smaller batch",
            err=True,
        )
        return 2
    except (KeyboardInterrupt, click.Abort) as error:
        click.echo(
            f"qdq: interrupted; {error.__cause__ or error or 'nothing was written'}", err=True
        )
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
    return f"{message.rstrip('.')}; '{where} --help' shows how" if where else message


def run() -> None:
    """Run the command line and end the process with its exit code, without taking large models apart first."""
    code = main()
    with contextlib.suppress(
        OSError, ValueError
    ):  # a reader that went away, or a stream that main closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
