"""`qdq quantize` of several models: a run of the command for each, in processes of their own."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from qdq.cli.failures import COULD_NOT_RUN
from qdq.cli.job_pool import JobFailure, run_jobs, sort_answers
from qdq.cli.messages import print_error, print_line, print_sections
from qdq.cli.progress import progress
from qdq.cli.verbosity import VERBOSITY_PARAMETERS, is_quiet, verbosity_words
from qdq.errors import UsageError
from qdq.files.command_files import note_output
from qdq.printable import escape_unprintable
from qdq.reports.json_output import to_json
from qdq.reports.report import Report
from qdq.reports.sections import Section, count_noun

#: Key of click's `meta`: the words after the command.
_WORDS = "qdq.words"

#: Parameters of a whole fleet, which the run of one model does not get.
_FLEET_PARAMETERS = ("models", "output", "out_dir", "jobs", "layout", *VERBOSITY_PARAMETERS)

#: Parameters that name a file to write.
_OUTPUT_PARAMETERS = ("report", "save_ranges")

#: What stands in the values of options for parts of the model's path.
_STEM, _FOLDER = "{stem}", "{folder}"

_PREFIX = "qdq: "


class QuantizedFile(msgspec.Struct, frozen=True):
    """The run of `qdq quantize` for one of several models."""

    #: The path, as the command was given it.
    model: str
    #: The file that is written unless the run failed.
    output: str
    #: The exit code that the run of this model alone has.
    exit_code: int
    seconds: float
    #: Why the model could not be quantized, one line; else empty.
    failure: str = ""
    #: What `qdq quantize --format json` prints for this model; null where that failed.
    report: Report | None = None


class FleetAnswer(msgspec.Struct, frozen=True):
    """The runs of `qdq quantize` for several models, in the order of the command line."""

    models: tuple[QuantizedFile, ...]


class _Job(msgspec.Struct, frozen=True):
    """The words of one model's command line, with the files that it reads and writes."""

    model: Path
    output: Path
    words: tuple[str, ...]


class _Run(msgspec.Struct, frozen=True):
    """How a command line ended: exit code, standard output and standard error."""

    exit_code: int
    output: str
    errors: str
    seconds: float


class FleetCommand(click.Command):
    """A command that writes one model to `-o`, or several ones into `--out-dir`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words of the command line, which the runs of the models get."""
        ctx.meta[_WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command for one model, or for each of several."""
        models: tuple[Path, ...] = ctx.params["models"]
        out_dir: Path | None = ctx.params["out_dir"]
        if out_dir is None:
            return super().invoke(self._choose_one(ctx, models))
        if ctx.params["output"] is not None:
            raise UsageError("-o and --out-dir exclude each other. Pass one of them.")
        if ctx.params["is_opened"]:
            raise UsageError("--open shows one model. Pass one, with -o.")
        jobs = _list_jobs(self, ctx, models, out_dir)
        ctx.exit(_run_fleet(jobs, ctx.params["jobs"], ctx.params["layout"]))

    def _choose_one(self, ctx: click.Context, models: tuple[Path, ...]) -> click.Context:
        """Return the context of the command for one model, which its function gets as `model`."""
        if len(models) > 1:
            raise UsageError(f"there are {len(models)} models. Pass --out-dir with a folder.")
        if ctx.params["jobs"] > 1:
            raise UsageError("--jobs works on several models. Pass them with --out-dir.")
        if ctx.params["output"] is None:
            (option,) = (option for option in self.params if option.name == "output")
            raise click.MissingParameter(ctx=ctx, param=option)
        for name in ("models", "out_dir", "jobs"):
            del ctx.params[name]
        ctx.params["model"] = models[0]
        return ctx


def _list_jobs(
    command: click.Command, ctx: click.Context, models: Sequence[Path], out_dir: Path
) -> list[_Job]:
    """Return the jobs of all models; raises UsageError where two would write the same file."""
    options = _read_options(command, ctx)
    _require_own_files(options, models)
    words = [word for option in options.values() for word in option]
    jobs: list[_Job] = []
    for model, output in zip(models, name_outputs(models, out_dir), strict=True):
        note_output(output, "--out-dir")
        own_words = [_fill(word, model) for word in words]
        jobs.append(
            _Job(
                model,
                output,
                (
                    *_read_global_flags(ctx),
                    *verbosity_words(ctx),
                    str(command.name),
                    *own_words,
                    f"--output={output}",
                    "--format=json",
                    "--",
                    str(model),
                ),
            )
        )
    for folder in {job.output.parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    return jobs


def name_outputs(models: Sequence[Path], out_dir: Path) -> list[Path]:
    """Return a file in a folder for each model: its path below the folder that all are in.

    Models of several folders keep theirs: their names, and those of their external data, may be the
    same. Raises UsageError for a model that is passed twice.
    """
    absolute = [Path(os.path.abspath(model)) for model in models]
    for i, path in enumerate(absolute):
        if path in absolute[:i]:
            raise UsageError(f"{models[i]}: the model is passed twice. Pass it once.")
    common = os.path.commonpath([path.parent for path in absolute])
    return [out_dir / path.relative_to(common) for path in absolute]


def _read_options(command: click.Command, ctx: click.Context) -> dict[str, list[str]]:
    """Return the words of each option on the command line that one model's run gets."""
    values, _, _ = command.make_parser(ctx).parse_args(list(ctx.meta[_WORDS]))
    options: dict[str, list[str]] = {}
    for parameter in command.params:
        name = parameter.name or ""
        if not isinstance(parameter, click.Option) or name in _FLEET_PARAMETERS:
            continue
        if name in values:
            options[name] = list(_spell(parameter, values[name]))
    return options


def _spell(option: click.Option, value: Any) -> Iterator[str]:
    """Yield the words that pass a value to an option."""
    word = option.opts[-1]
    if option.is_flag:
        yield word if value else option.secondary_opts[-1]
        return
    for text in value if option.multiple else (value,):
        yield f"{word}={text}"


def _read_global_flags(ctx: click.Context) -> list[str]:
    parameters: Mapping[str, Any] = ctx.parent.params if ctx.parent else {}
    return [f"--{name.replace('_', '-')}" for name, value in parameters.items() if value is True]


def _require_own_files(options: Mapping[str, list[str]], models: Sequence[Path]) -> None:
    """Raise UsageError for an option by which several models would write the same file."""
    for name in _OUTPUT_PARAMETERS:
        for word in options.get(name, ()):
            if len(models) > 1 and len({_fill(word, model) for model in models}) < len(models):
                raise UsageError(
                    f"{word}: several models would write the same file. "
                    f"Put {_STEM} or {_FOLDER} into its name, for the model's."
                )


def _fill(word: str, model: Path) -> str:
    """Return an option with the name of a model, without suffix, and of its folder filled in."""
    folder = Path(os.path.abspath(model)).parent.name
    return word.replace(_STEM, model.stem).replace(_FOLDER, folder)


def _run_fleet(jobs: Sequence[_Job], job_count: int, layout: str) -> int:
    """Quantize the models, print what came of each, and return the worst exit code."""
    is_text = layout == "text"
    files: list[QuantizedFile] = []
    ready = run_jobs(make_runner, None, [job.words for job in jobs], job_count)
    with contextlib.ExitStack() as stack:
        advance: Callable[..., None] | None = None
        if not is_text:  # in text the lines of the models show the progress
            advance = stack.enter_context(progress("quantizing", len(jobs), unit="models"))
        for job, run in zip(jobs, sort_answers(ready), strict=True):
            file = _describe_run(job, run)
            files.append(file)
            _print_run(file, run, is_text)
            if advance is not None:
                advance(len(files))
    if is_text:
        if not is_quiet():
            click.echo()
            print_sections([_summarize(files)])
    else:
        click.echo(to_json(FleetAnswer(tuple(files))), nl=False)
    return max(file.exit_code for file in files)


def make_runner(_: None) -> Callable[[Sequence[str]], _Run]:
    """Return the function that runs a command line in a process of its own."""
    return _run_command


def _run_command(words: Sequence[str]) -> _Run:
    from qdq.cli import main

    out, err = io.StringIO(), io.StringIO()
    start = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return _Run(code, out.getvalue(), err.getvalue(), time.monotonic() - start)


def _describe_run(job: _Job, run: _Run | JobFailure) -> QuantizedFile:
    model, output = str(job.model), str(job.output)
    if isinstance(run, JobFailure):
        return QuantizedFile(model, output, run.exit_code, 0.0, f"{model}: {run.message}")
    seconds = round(run.seconds, 3)
    if run.exit_code < COULD_NOT_RUN:
        report = msgspec.json.decode(run.output)  # encoded again, it is the same
        report.pop("qdq_json", None)
        return QuantizedFile(model, output, run.exit_code, seconds, report=report)
    lines = [line for line in run.errors.splitlines() if line.startswith(_PREFIX)]
    failure = lines[-1].removeprefix(_PREFIX) if lines else "the run ended without a message."
    if job.model.name not in failure:
        failure = f"{model}: {failure}"
    return QuantizedFile(model, output, run.exit_code, seconds, failure)


def _print_run(file: QuantizedFile, run: _Run | JobFailure, is_text: bool) -> None:
    """Print the line about a model, and what its run wrote to standard error before that."""
    if isinstance(run, _Run):
        for line in run.errors.splitlines():
            is_known = line == f"{_PREFIX}{file.failure}" or line.startswith("project file ")
            if not is_known and not file.failure.endswith(line.removeprefix(_PREFIX)):
                _pass_on(line)
    if file.failure:
        print_error(f"{_PREFIX}{file.failure}")
    elif is_text and not is_quiet():
        pairs = count_noun(_count_pairs(file), "pair")
        seconds = f"{file.seconds:.1f} s"
        print_line(f"{file.model}: wrote {file.output}: {pairs}, {_state(file)}, {seconds}")


def _pass_on(line: str) -> None:
    """Print a line that a run wrote to standard error, which has recorded it already."""
    if not is_quiet():
        click.echo(escape_unprintable(line), err=True)


def _content(file: QuantizedFile) -> Mapping[str, Any]:
    content: Any = file.report
    return content or {}


def _count_pairs(file: QuantizedFile) -> int:
    return len((_content(file).get("scales") or {}).get("by_pair", ()))


def _state(file: QuantizedFile) -> str:
    """Return the result of a model in a few words."""
    if file.failure:
        return "failed"
    parts = []
    findings, misses = (len(_content(file).get(key) or ()) for key in ("findings", "misses"))
    if findings:
        parts.append(count_noun(findings, "finding"))
    if misses:
        parts.append(f"{misses} missed")
    return ", ".join(parts) or "no findings"


def _summarize(files: Sequence[QuantizedFile]) -> Section:
    failure_count = sum(bool(file.failure) for file in files)
    line = f"{count_noun(len(files), 'model')}: {len(files) - failure_count} quantized"
    if failure_count:
        line = f"{line}, {failure_count} failed"
    rows: list[tuple[Any, ...]] = []
    for file in files:
        pairs = "-" if file.failure else _count_pairs(file)
        rows.append((file.model, _state(file), pairs, f"{file.seconds:.1f}", file.exit_code))
    headers = ("model", "result", "pairs", "seconds", "exit code")
    return Section("Models", (line,), headers, tuple(rows))
