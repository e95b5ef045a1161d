"""The models of one `qdq check`, checked one after another or by several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from qdq.checking.baseline import BaselineEntry, make_entries, read_baseline
from qdq.checking.checker import check, recorded_targets
from qdq.checking.finding import Finding
from qdq.checking.selection import Selection, relative_posix_path
from qdq.cli.failures import COULD_NOT_RUN
from qdq.cli.messages import print_error
from qdq.errors import QdqError, UsageError
from qdq.graph.loader import load
from qdq.graph.source import Source
from qdq.printable import encodable_name
from qdq.reports.sarif import CheckedModel
from qdq.rules.rule import RuleSet
from qdq.target import Target

if TYPE_CHECKING:
    from qdq.engines.rtx_compiler import Compiler


class CheckSettings(msgspec.Struct, frozen=True):
    """How each model is checked."""

    #: None for the rules that are recorded in each model.
    rules: RuleSet | None
    #: Empty for the targets that are recorded in each model.
    targets: tuple[Target, ...]
    #: None for the globs that are recorded in each model.
    leave_float: Sequence[str] | None
    #: The findings that are reported.
    selection: Selection
    #: File of findings that are not reported.
    baseline: Path | None
    #: Whether engines are built.
    engine: bool
    #: Whether models are fixed.
    fix: bool
    #: The file that each fixed model is written to; empty for in place.
    outputs: Mapping[Path, Path]
    #: Whether these files may replace others.
    force: bool
    #: Whether the changes of a fix are shown, and nothing is written.
    diff: bool
    #: Whether findings leave the exit code at 0.
    exit_zero: bool


class _Baseline:
    """The findings in a baseline file, and those of them that models still have."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read_baseline(path)
        self._current_entries: set[BaselineEntry] = set()
        self._checked_models: set[str] = set()

    def select_new(self, model: Path, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """Return the findings in a model that the baseline does not hold."""
        entries = make_entries(model, self.path, findings)
        self._current_entries.update(entries)
        self._checked_models.add(encodable_name(relative_posix_path(model, self.path.parent)))
        pairs = zip(findings, entries, strict=True)
        return tuple(finding for finding, entry in pairs if entry not in self.entries)

    def list_stale(self) -> tuple[BaselineEntry, ...]:
        """Return the entries that the models checked so far no longer have, sorted."""
        gone = self.entries - self._current_entries
        return tuple(sorted(entry for entry in gone if entry.model in self._checked_models))


class CheckSession:
    """Checks models, and counts the findings and the models that could not be checked."""

    def __init__(self, settings: CheckSettings, job_count: int = 1) -> None:
        self.settings = settings
        self.finding_count = 0
        #: How many models `--fix` would change.
        self.fixable_count = 0
        self.failure_count = 0
        self._job_count = job_count
        self._worst_failure = 0
        self._baseline = _Baseline(settings.baseline) if settings.baseline else None

    def check_models(self, models: Sequence[Path]) -> Iterator[CheckedModel]:
        """Yield the findings in each model as soon as it and those before it are checked.

        A model that cannot be checked is also reported on standard error.
        """
        is_parallel = self._job_count > 1 and len(models) > 1
        results = self._check_parallel(models) if is_parallel else self._check_serially(models)
        for model, checked in zip(models, results, strict=True):
            if checked.failure:
                self.failure_count += 1
                self._worst_failure = max(self._worst_failure, COULD_NOT_RUN)
                print_error(f"qdq: {checked.failure}")
                yield checked
            else:
                yield self._select_findings(model, checked)

    @property
    def stale_entries(self) -> tuple[BaselineEntry, ...]:
        """Entries of the baseline that the models checked so far no longer have."""
        if self._baseline is None:
            return ()
        return self._baseline.list_stale()

    @property
    def exit_code(self) -> int:
        """The exit code for the models checked so far."""
        if self._worst_failure or self.settings.exit_zero:
            return self._worst_failure
        count = self.fixable_count if self.settings.diff else self.finding_count
        return 1 if count else 0

    def _select_findings(self, model: Path, checked: CheckedModel) -> CheckedModel:
        """Return a result without the findings of the baseline, and count what is left."""
        findings = checked.findings
        if self._baseline is not None:
            findings = self._baseline.select_new(model, findings)
        self.finding_count += len(findings)
        self.fixable_count += bool(checked.would_fix)
        return msgspec.structs.replace(checked, findings=findings)

    def _check_serially(self, models: Sequence[Path]) -> Iterator[CheckedModel]:
        with ModelChecker(self.settings) as checker:
            for model in models:
                yield checker.check(model)

    def _check_parallel(self, models: Sequence[Path]) -> Iterator[CheckedModel]:
        from qdq.cli.job_pool import JobFailure, run_jobs, sort_answers

        answers = run_jobs(make_checker, self.settings, models, self._job_count)
        results = zip(models, sort_answers(answers), strict=True)
        for model, answer in results:
            if isinstance(answer, JobFailure):
                self._worst_failure = max(self._worst_failure, answer.exit_code)
                yield CheckedModel(str(model), failure=f"{model}: {answer.message}")
            else:
                yield answer


def make_checker(settings: CheckSettings) -> Callable[[Path], CheckedModel]:
    """Return the function that checks one model in a process of its own."""
    return ModelChecker(settings).check


class ModelChecker:
    """Checks one model after another, with one compiler. Use as a context manager."""

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._compiler: Compiler | None = None

    def __enter__(self) -> ModelChecker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, model: Path) -> CheckedModel:
        """Return the findings in a model, of a baseline too, or why it could not be checked."""
        try:
            return self._check_model(model)
        except QdqError as error:
            return CheckedModel(str(model), failure=" ".join(str(error).split()))

    def _check_model(self, model: Path) -> CheckedModel:
        source = load(model)
        findings = self._list_findings(model, source)
        if not self._settings.fix and not self._settings.diff:
            return CheckedModel(str(model), findings)
        return self._fix_model(model, source, findings)

    def _fix_model(
        self, model: Path, source: Source, findings: tuple[Finding, ...]
    ) -> CheckedModel:
        """Fix a model, or state the changes, and return the findings that are left."""
        from qdq.cli.check_fixes import find_fix, write_fix, write_fixed_copy

        settings = self._settings
        model_fix = find_fix(
            model,
            findings,
            rules=settings.rules,
            targets=settings.targets,
            leave_float=settings.leave_float,
        )
        if settings.diff:
            return CheckedModel(str(model), findings, would_fix=model_fix.differences)
        output = settings.outputs.get(model)
        if output is None:
            write_fix(model_fix, model)
        else:
            write_fixed_copy(model_fix, source, output, settings.force)
        if model_fix.changes:
            result = load(model) if output is None else model_fix.result
            findings = self._list_findings(model, result)
        written = msgspec.UNSET if output is None else str(output)
        return CheckedModel(str(model), findings, fixed=model_fix.changes, output=written)

    def _list_findings(self, model: Path, source: Source) -> tuple[Finding, ...]:
        settings = self._settings
        findings = check(
            source,
            rules=settings.rules,
            targets=settings.targets,
            leave_float=settings.leave_float,
        )
        is_float = any(finding.code == "not-quantized" for finding in findings)
        if settings.engine and not is_float:
            from qdq.checking.engine_checks import check_engines

            targets = _select_rtx_targets(settings.targets or recorded_targets(source), model)
            findings += tuple(check_engines(source, targets, self._open_compiler(), findings))
        return settings.selection.of(model, findings)

    def _open_compiler(self) -> Compiler:
        if self._compiler is None:
            from qdq.engines.rtx_compiler import Compiler

            self._compiler = self._stack.enter_context(Compiler())
        return self._compiler


def _select_rtx_targets(targets: Sequence[Target], model: Path) -> tuple[Target, ...]:
    """Return the targets that engines are built for; raises UsageError where there are none."""
    rtx_targets = tuple(target for target in targets if target.backend == "rtx")
    if not rtx_targets:
        raise UsageError(
            f"{model}: --engine builds for rtx targets, and the model has none. "
            "Pass --target rtx:sm86."
        )
    return rtx_targets
