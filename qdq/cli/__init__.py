"""The command `qdq`. Its commands are imported when they are called, so that help is quick."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdq import __version__
from qdq.cli.failures import print_failure, report_failure
from qdq.cli.process import open_streams, run_supervised
from qdq.cli.verbosity import (
    COMMAND_LINE,
    add_verbosity,
    end_record,
    make_verbosity_options,
    protect_log,
)
from qdq.interruption import end_on_signals
from qdq.memory import keep_freed_memory

if TYPE_CHECKING:
    from qdq.cli.project_file import Project

#: Commands in the order of the work, with the line that `qdq --help` shows.
COMMANDS = {
    "quantize": "Quantize an ONNX file: plan, calibrate, apply and check in one step.",
    "plan": "Decide which edges get a Q/DQ pair, and by which rule.",
    "explain": "Explain why a node's inputs or a tensor's readers are quantized or not.",
    "calibrate": "Run the float model over data and compute the scales of a plan.",
    "ranges": "Merge observed ranges; export ranges as TensorRT calibration cache, YAML or JSON.",
    "apply": "Write the model with the Q/DQ pairs of a plan and its scales.",
    "cast": "Write a float or Q/DQ model in FP16 or BF16, with FP32 where rules require it.",
    "strip": "Remove the Q/DQ pairs from a model.",
    "check": "Find Q/DQ that differs from the rules, or that TensorRT would refuse.",
    "inspect": "Print inputs, operators, precision of layers, pairs and sizes of a model.",
    "diff": "Print the pairs in which two models differ: added, removed, moved and rescaled.",
    "validate": "Compare float and quantized model in ONNX Runtime and in TensorRT's engines.",
    "sensitivity": "Rank layers by the error that their INT8 makes, and by the gain in float.",
    "probe": "Measure which layers a target runs in INT8, FP8 and INT4, as a kernel table.",
    "test": "Run the test cases of rule files.",
    "facts": "List the facts and formats that rules may use.",
    "rules": "List or show rules with their reasons; write their schema and documentation.",
    "new-rule": "Write a new rule and its test cases as a starting point.",
    "docs": "Print what the documentation says about a finding, rule, command or page.",
}

#: Commands that a project file gives defaults to.
PROJECT_COMMANDS = (
    "quantize",
    "cast",
    "plan",
    "explain",
    "calibrate",
    "check",
    "validate",
    "sensitivity",
)

#: Commands that do without numpy and onnx.
_TEXT_COMMANDS = ("docs",)

_DEBUG_OPTION = "--debug"

#: log2 of the cycles that a thread of OpenBLAS waits for work in a loop.
_LOG_WAITING_CYCLES = "16"

#: The new objects of each generation after which garbage is collected; Python's first is 700.
_COLLECTION_THRESHOLDS = (200_000, 20, 20)

#: Key of click's `meta`: whether help is requested.
_HELP = "qdq.help"


class _LazyGroup(click.Group):
    """A group whose commands are in modules of their names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[COMMAND_LINE] = tuple(args)
        ctx.meta[_HELP] = "-h" in args or "--help" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
        except click.exceptions.Exit:  # commands that report findings end so
            self._print_project(ctx)
            raise
        self._print_project(ctx)
        return code

    def _print_project(self, ctx: click.Context) -> None:
        """Print on standard error which project file gave the command defaults."""
        project: Project | None = ctx.obj
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        if project is None or command is None:
            return
        keys = project.list_used_keys({parameter.name for parameter in command.params})
        if keys:
            from qdq.cli.messages import print_note

            path = os.path.relpath(project.path)
            print_note(f"project file {path}: {', '.join(keys)}")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name not in _TEXT_COMMANDS:
            _import_early()
        module = importlib.import_module(f"qdq.cli.{name.replace('-', '_')}")
        return add_verbosity(module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from qdq.errors import did_you_mean

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            name = args[0]
            hint = did_you_mean(name, COMMANDS)
            raise click.UsageError(f"no command {name!r}{hint} 'qdq --help' lists the commands.")
        return super().resolve_command(ctx, args)


def _import_early() -> None:
    """Import numpy and onnx while the stack is short.

    Below a hundred calls, as where modules import one another, CPython may ask the system for a
    further block of stack in each call, and give it back: it did 3,000 times.
    """
    for name in ("numpy", "onnx"):
        importlib.import_module(name)


def _print_version(context: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
    if not is_asked or context.resilient_parsing:
        return
    from qdq.compiled.library import describe_path

    click.echo(f"qdq, version {__version__}\ncalculations: {describe_path()}")
    context.exit()


def _add_verbosity_options(group: click.Group) -> click.Group:
    group.params += make_verbosity_options()
    return group


@_add_verbosity_options
@click.group(
    cls=_LazyGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("--no-project", is_flag=True, help="Ignore the project file.")
@click.option("--debug", is_flag=True, help="Print the traceback of an error, before its line.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version, and whether calculations are compiled, and exit.",
)
@click.pass_context
def cli(ctx: click.Context, no_project: bool, debug: bool) -> None:
    """Insert, repair and check the QuantizeLinear/DequantizeLinear pairs that TensorRT requires.

    \b
    Example:
      qdq quantize model.onnx -o model.int8.onnx --data samples/ --target rtx:sm86
      qdq validate model.onnx model.int8.onnx --data samples/ --target rtx:sm86

    A project file gives defaults for --rules, --target, --data and other options. It is qdq.yaml,
    or [tool.qdq] in pyproject.toml, in the current folder or the nearest one above it.

    Exit codes: 0 clean, 1 findings, 2 could not run, 3 an error that qdq does not foresee.
    """
    from qdq.files.command_files import command_files

    ctx.with_resource(command_files())
    protect_log(ctx)
    if ctx.invoked_subcommand not in PROJECT_COMMANDS or no_project or ctx.meta[_HELP]:
        return
    from qdq.cli.project_file import find_project

    project = find_project(Path.cwd())
    if project is not None:
        ctx.obj = project
        ctx.default_map = {ctx.invoked_subcommand: project.options}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Errors become one line on standard error."""
    args = sys.argv[1:] if argv is None else list(argv)
    code = _run_words(args)
    end_record(code)
    return code


def _spare_processor() -> None:
    """Spare what the start of a process costs beyond its work: a quarter of a small command's time.

    Threads of numpy's OpenBLAS wait 2**26 cycles for work in a loop, when numpy is imported, before
    they sleep. The garbage collector looks at the classes of all modules again and again. glibc
    gives large blocks back to the system, which clears each page of the next one.
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _LOG_WAITING_CYCLES)
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    keep_freed_memory()


def _run_words(args: list[str]) -> int:
    try:
        code = cli.main(args=args, prog_name="qdq", standalone_mode=False)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 nothing ends in a traceback
        return report_failure(error, debug=_DEBUG_OPTION in args)
    return code if isinstance(code, int) else 0


def run() -> None:
    """Run the command line and end the process."""
    _spare_processor()
    end_on_signals()
    is_open = sys.stdout is not None
    open_streams()
    if is_open:
        run_supervised(main)
    sys.exit(print_failure("standard output is closed. Open it, or write it to /dev/null."))
