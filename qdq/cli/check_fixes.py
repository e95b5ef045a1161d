"""What `qdq check --fix` changes in a model, and the files that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from qdq.checking.finding import Finding
from qdq.errors import UsageError
from qdq.files.command_files import note_output
from qdq.files.output import check_output, copy_atomic, written_together
from qdq.graph.source import Source
from qdq.pipeline.fixer import Fixed, fix
from qdq.reports.changes import fix_diff_lines, fixed_lines
from qdq.rewriting.model_file import plan_external_copies, save, save_in_place
from qdq.rules.rule import RuleSet
from qdq.target import Target


class ModelFix(msgspec.Struct, frozen=True):
    """A fixed model, and its changes, one sentence per change; without changes there is none."""

    fixed: Fixed | None = None
    changes: tuple[str, ...] = ()
    #: The same with the pairs as `qdq diff` prints them.
    differences: tuple[str, ...] = ()

    @property
    def result(self) -> Source:
        """The fixed model, for a check of it before it is written."""
        assert self.fixed is not None
        return msgspec.structs.replace(self.fixed.source, model=self.fixed.model, stamp=None)


def name_fixed_files(
    models: Sequence[Path], output: Path | None, out_dir: Path | None, force: bool
) -> dict[Path, Path]:
    """Return the file that each model is written to when it is fixed, {} for in place.

    Raises UsageError for options that exclude each other, and for files that cannot be written.
    """
    if output is not None and out_dir is not None:
        raise UsageError("-o and --out-dir exclude each other. Pass one of them.")
    if output is not None and len(models) > 1:
        raise UsageError(f"there are {len(models)} models. Pass --out-dir with a folder.")
    if output is not None:
        check_output(output, force)
        return {models[0]: output}
    if out_dir is None:
        return {}
    from qdq.cli.fleet import name_outputs

    outputs = dict(zip(models, name_outputs(models, out_dir), strict=True))
    for path in outputs.values():
        note_output(path, "--out-dir")
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        check_output(path, force)
    return outputs


def find_fix(
    model: Path,
    findings: Sequence[Finding],
    *,
    rules: RuleSet | None,
    targets: Sequence[Target],
    leave_float: Sequence[str] | None,
) -> ModelFix:
    """Return the fix of a model with some findings, without changes where there is none.

    `rules`, `targets` and `leave_float` are as for `fix`.
    """
    if not findings:
        return ModelFix()
    fixed = fix(model, rules=rules, targets=tuple(targets), leave_float=leave_float)
    if fixed is None:
        return ModelFix()
    changes = fixed_lines(fixed.existing)
    differences = fix_diff_lines(fixed.existing)
    if any(finding.code == "opset" for finding in findings):
        changes += fixed.source.notes
        differences += fixed.source.notes
    return ModelFix(fixed, tuple(changes), tuple(differences)) if changes else ModelFix()


def write_fix(model_fix: ModelFix, path: Path) -> None:
    """Replace the model at `path` by its fix, if there is one."""
    if model_fix.fixed is not None:
        save_in_place(model_fix.fixed.model, model_fix.fixed.source, path)


def write_fixed_copy(model_fix: ModelFix, source: Source, output: Path, force: bool) -> None:
    """Write the fix of a model to another file, or the file as it is where nothing is fixed.

    External data is copied along.
    """
    if model_fix.fixed is not None:
        save(model_fix.fixed.model, model_fix.fixed.source, output, force)
        return
    assert source.path is not None  # `qdq check` reads files
    copies = plan_external_copies(source, output, force)
    with written_together():
        copy_atomic(source.path, output)
        for origin, copy in copies.items():
            copy_atomic(origin, copy)
