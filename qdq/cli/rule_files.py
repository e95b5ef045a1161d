"""The rule files that `qdq quantize` writes beside the model: what a search left in float."""

from __future__ import annotations

from pathlib import Path

from qdq.files.output import write_atomic
from qdq.pipeline.buildable import leave_float_yaml
from qdq.pipeline.partial_rule_file import sensitive_yaml
from qdq.pipeline.quantize_model import Quantized
from qdq.rules.rule import RuleSet
from qdq.sensitivity.partial_result import PartialResult


def write_rule_files(
    result: Quantized, rules: RuleSet, build_file: Path, budget_file: Path | None
) -> list[Path]:
    """Write the layers that a search left in float as rule files, and return the files.

    `build_file` is for a search for what builds, `budget_file` for a budget, if there was one.
    Nothing is written or returned where a search left no layer.
    """
    written: list[Path] = []
    search = result.build_search
    if search and search.groups:
        content = leave_float_yaml(build_file.stem, result.source.name, search, rules)
        write_atomic(build_file, content.encode())
        written.append(build_file)
    partial = result.partial
    if budget_file and isinstance(partial, PartialResult) and partial.sensitive:
        content = sensitive_yaml(budget_file.stem, result.source.name, partial, rules)
        write_atomic(budget_file, content.encode())
        written.append(budget_file)
    return written
