"""`qdq check`: findings in models, for the shell, for pre-commit and for code scanning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec

from qdq import __version__
from qdq.checking.baseline import (
    BaselineEntry,
    encode_baseline,
    is_baseline,
    make_entries,
    read_baseline,
)
from qdq.checking.catalogue import PROBLEMS, SEVERITIES, Problem
from qdq.checking.checker import check, recorded_targets
from qdq.checking.engine_checks import check_engines
from qdq.checking.finding import Finding
from qdq.checking.selection import Selection, parse_codes, relative_posix_path
from qdq.cli.options import FILE, rules_of, rules_option, target_option, targets_of
from qdq.engines.rtx_compiler import Compiler
from qdq.errors import QdqError, UsageError
from qdq.files.output import check_output, write_atomic
from qdq.graph.loader import load
from qdq.graph.source import Source
from qdq.pipeline.fixer import fix
from qdq.reports.changes import fixed_lines
from qdq.reports.json_output import to_json
from qdq.reports.sarif import CheckedModel, to_github, to_sarif
from qdq.rewriting.model_file import save
from qdq.rules.rule import RuleSet
from qdq.target import Target

#: How many findings of one code the text shows.
_MOST = 12
_LAYOUTS = ("text", "json", "sarif", "github")


class Answer(msgspec.Struct, frozen=True):
    """What `--format json` prints."""

    models: tuple[CheckedModel, ...]
    #: Findings of the baseline that the checked models no longer have.
    stale: tuple[BaselineEntry, ...] = ()


class Codes(msgspec.Struct, frozen=True):
    """What `--codes --format json` prints."""

    codes: tuple[Problem, ...]


@click.command("check")
@click.argument("models", type=FILE, nargs=-1)
@rules_option
@target_option
@click.option(
    "--select",
    multiple=True,
    metavar="CODE",
    help="Report these codes only: codes or severities, behind commas or repeated.",
)
@click.option("--ignore", multiple=True, metavar="CODE", help="Do not report these codes.")
@click.option(
    "--baseline", type=FILE, metavar="FILE", help="Do not report the findings that FILE holds."
)
@click.option(
    "--write-baseline",
    type=FILE,
    metavar="FILE",
    help="Write the findings to FILE, for --baseline, instead of reporting them.",
)
@click.option(
    "--fix",
    "mend",
    is_flag=True,
    help="First mend what has one right answer, in place: formats, and pairs whose scales the model has.",
)
@click.option(
    "--engine",
    is_flag=True,
    help="Also build each model for its rtx targets, with no GPU, and report what the engine disagrees with.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(_LAYOUTS),
    default="text",
    show_default=True,
    help="For people, programs, code scanning or GitHub.",
)
@click.option("--codes", is_flag=True, help="List the codes and what each means, and end.")
@click.pass_context
def command(ctx: click.Context, /, models: tuple[Path, ...], **given: Any) -> None:
    """Print what is wrong with the Q/DQ of MODELS: what TensorRT would refuse or misread, and what the rules place otherwise.

    Rules and targets default to those of the project file, else to those that qdq wrote into each
    model. Exit 1 if anything is found, 2 if a model could not be checked; the others are checked all the same.

    \b
    Example:
      qdq check resnet50.int8.onnx
      qdq check models/*.onnx --ignore note --format sarif > findings.sarif
      qdq check --fix resnet50.ort.onnx
    """
    if given["codes"]:
        _print_codes(given["layout"])
        return
    if not models:
        raise click.UsageError("Missing argument 'MODELS...'.")
    options = ctx.obj.options if ctx.obj else {}
    if given["mend"] and given["write_baseline"]:
        raise UsageError(
            "--fix changes models and --write-baseline accepts them as they are; pass one of them"
        )
    session = _Session(given, options, ctx.obj.path.parent if ctx.obj else None)
    if given["write_baseline"]:
        ctx.exit(_write_baseline(given["write_baseline"], models, session))
    printer = _PRINTERS[given["layout"]]
    ctx.exit(printer(session, models))


class _Session:
    """What one run checks models with, and what it found so far."""

    def __init__(self, given: dict[str, Any], options: dict[str, Any], folder: Path | None) -> None:
        self.rules: RuleSet | None = rules_of(given["rule_sets"]) if given["rule_sets"] else None
        self.targets = targets_of(given["targets"])
        self.leave_float: Sequence[str] | None = options.get("leave_float")
        select = (
            parse_codes(given["select"], "--select") if given["select"] else frozenset(PROBLEMS)
        )
        self.choice = Selection(
            select,
            parse_codes(given["ignore"], "--ignore"),
            tuple(options.get("per_file_ignores", ())),
            folder,
        )
        self.baseline: Path | None = None if given["write_baseline"] else given["baseline"]
        self.known = read_baseline(self.baseline) if self.baseline else frozenset()
        self.engine: bool = given["engine"]
        self.mend: bool = given["mend"]
        self.found = self.failed = 0
        #: Entries of the baseline that were met, and models that were checked as it names them.
        self._met: set[BaselineEntry] = set()
        self._seen: set[str] = set()

    def run(self, models: Sequence[Path]) -> Iterator[CheckedModel]:
        """Yield what is found in each model as soon as it is checked; what fails is said on standard error too."""
        with ExitStack() as stack:
            compiler = stack.enter_context(Compiler()) if self.engine else None
            for model in models:
                try:
                    findings = self._findings(model, load(model), compiler)
                    fixed: tuple[str, ...] = ()
                    if findings and self.mend and (mended := self._mended(model)):
                        findings, fixed = self._findings(model, mended[0], compiler), mended[1]
                    yield self._new(model, findings, fixed)
                except QdqError as error:
                    self.failed += 1
                    failure = " ".join(str(error).split())
                    click.echo(f"qdq: {failure}", err=True)
                    yield CheckedModel(str(model), (), failure)

    def _mended(self, model: Path) -> tuple[Source, tuple[str, ...]] | None:
        """Mend a model in place; return it and what was done, None where there was nothing to do."""
        fixed = fix(model, rules=self.rules, targets=self.targets, leave_float=self.leave_float)
        if fixed is None or not (done := fixed_lines(fixed.existing)):
            return None
        save(fixed.model, fixed.source, model, force=True)
        return load(model), tuple(done)

    def _findings(
        self, model: Path, source: Source, compiler: Compiler | None
    ) -> tuple[Finding, ...]:
        findings = check(
            source, rules=self.rules, targets=self.targets, leave_float=self.leave_float
        )
        if compiler is not None and not any(f.code == "not-quantized" for f in findings):
            findings += tuple(
                check_engines(
                    source,
                    _rtx(self.targets or recorded_targets(source), model),
                    compiler,
                    findings,
                )
            )
        return self.choice.of(model, findings)

    def _new(
        self, model: Path, findings: tuple[Finding, ...], fixed: tuple[str, ...]
    ) -> CheckedModel:
        if self.baseline is not None:
            entries = make_entries(model, self.baseline, findings)
            self._met.update(entries)
            self._seen.add(relative_posix_path(model, self.baseline.parent))
            findings = tuple(
                f for f, entry in zip(findings, entries, strict=True) if entry not in self.known
            )
        self.found += len(findings)
        return CheckedModel(str(model), findings, fixed=fixed)

    @property
    def stale(self) -> tuple[BaselineEntry, ...]:
        """Entries of the baseline that the models checked so far no longer have."""
        return tuple(
            sorted(
                entry
                for entry in self.known
                if entry.model in self._seen and entry not in self._met
            )
        )

    @property
    def code(self) -> int:
        """The exit code of what was done so far."""
        return 2 if self.failed else 1 if self.found else 0


def _rtx(targets: Sequence[Target], model: Path) -> tuple[Target, ...]:
    built = tuple(target for target in targets if target.backend == "rtx")
    if not built:
        raise UsageError(
            f"{model}: --engine builds for rtx targets, and it has none; pass --target rtx:sm86"
        )
    return built


def _print_text(session: _Session, models: Sequence[Path]) -> int:
    clean = 0
    counts: Counter[str] = Counter()
    for checked in session.run(models):
        counts.update(f.severity for f in checked.findings)
        clean += not checked.findings and not checked.failure
        for line in [] if checked.failure else _lines(checked):
            click.echo(line)
    if len(models) > 1:
        failed = f"; {session.failed} could not be checked" if session.failed else ""
        click.echo(f"{len(models)} models: {_counted(counts)}; {clean} without findings{failed}")
    _say_stale(session)
    return session.code


def _lines(checked: CheckedModel) -> Iterator[str]:
    """Yield the findings in one model, those of one code together, errors first."""
    yield from (f"{checked.model}: fixed: {line}" for line in checked.fixed)
    yield f"{checked.model}: {_counted(Counter(f.severity for f in checked.findings))}"
    order = {code: i for i, code in enumerate(PROBLEMS)}
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(checked.findings, key=lambda f: order[f.code]):
        groups.setdefault((finding.code, finding.fix), []).append(finding)
    for (code, remedy), findings in groups.items():
        yield f"  {findings[0].severity} {code}: {findings[0].cost}"
        for finding in findings[:_MOST]:
            by = f" [{finding.rule}]" if finding.rule else ""
            yield (
                f"    {finding.where}: {finding.problem}{by}"
                if finding.where
                else f"    {finding.problem}"
            )
        if len(findings) > _MOST:
            yield f"    and {len(findings) - _MOST} more (--format json has all)"
        yield f"    fix: {remedy} ({findings[0].page})"


def _counted(counts: Mapping[str, int]) -> str:
    said = [f"{counts[s]} {s}{'s' * (counts[s] != 1)}" for s in SEVERITIES if counts.get(s)]
    return ", ".join(said) or "no findings"


def _print_json(session: _Session, models: Sequence[Path]) -> int:
    found = tuple(session.run(models))
    click.echo(to_json(Answer(found, session.stale)), nl=False)
    return session.code


def _print_sarif(session: _Session, models: Sequence[Path]) -> int:
    click.echo(to_sarif(session.run(models), __version__).decode(), nl=False)
    _say_stale(session)
    return session.code


def _print_github(session: _Session, models: Sequence[Path]) -> int:
    for checked in session.run(models):
        for line in to_github(checked):
            click.echo(line)
    _say_stale(session)
    return session.code


_PRINTERS: dict[str, Callable[[_Session, Sequence[Path]], int]] = {
    "text": _print_text,
    "json": _print_json,
    "sarif": _print_sarif,
    "github": _print_github,
}


def _say_stale(session: _Session) -> None:
    if stale := session.stale:
        first = f"{stale[0].model}: {stale[0].code} {stale[0].where}".strip()
        click.echo(
            f"{session.baseline}: {len(stale)} of its findings are gone, such as {first}; --write-baseline writes it again",
            err=True,
        )


def _write_baseline(path: Path, models: Sequence[Path], session: _Session) -> int:
    """Write all findings to a baseline; nothing where a model could not be checked."""
    check_output(path, tuple(models), force=is_baseline(path))
    known = [
        entry
        for checked in session.run(models)
        for entry in make_entries(Path(checked.model), path, checked.findings)
    ]
    if session.failed:
        click.echo(
            f"qdq: {path}: was not written, for {session.failed} of {len(models)} models could not be checked",
            err=True,
        )
        return session.code
    write_atomic(path, encode_baseline(known))
    click.echo(
        f"wrote {path}: {len(set(known))} findings in {len({k.model for k in known})} of {len(models)} models"
    )
    return 0


def _print_codes(layout: str) -> None:
    if layout == "json":
        click.echo(to_json(Codes(tuple(PROBLEMS.values()))), nl=False)
        return
    for severity in SEVERITIES:
        for problem in PROBLEMS.values():
            if problem.severity == severity:
                click.echo(f"{severity:8}{problem.code}: {problem.title}")
