"""The report of a run: plan, calibration, findings and validation, as text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qdq.calibration.scales import Scales
from qdq.checking.finding import Finding
from qdq.pipeline.bisection import BisectionResult
from qdq.pipeline.file_choice import FileChoice
from qdq.pipeline.recovery_job import RecoveryStep
from qdq.pipeline.requantize import Existing
from qdq.planning.decisions import Plan
from qdq.precision.cast_model import CastReport
from qdq.reports.cast_sections import cast_sections
from qdq.reports.changes import existing_sections
from qdq.reports.file_choice_sections import file_choice_sections
from qdq.reports.partial_sections import partial_sections, recovery_sections
from qdq.reports.plan_sections import build_search_section, plan_summary
from qdq.reports.scales_sections import scales_summary
from qdq.reports.sections import Section
from qdq.reports.validation_sections import (
    accuracy_section,
    layers_section,
    validation_sections,
)
from qdq.sensitivity.partial_result import PartialResult
from qdq.validation.accuracy import Accuracy
from qdq.validation.validator import Validation


class Report(msgspec.Struct, frozen=True):
    """The results of a run; those of stages that did not run are null."""

    plan: Plan | None = None
    scales: Scales | None = None
    #: The findings of `check` in the quantized model.
    findings: tuple[Finding, ...] | None = None
    #: Accuracy and engines; null unless the run validated.
    validation: Validation | None = None
    #: One sentence for each broken promise and each missed threshold.
    misses: tuple[str, ...] = ()
    #: The nodes left in float so that the model builds; absent without `--until-it-builds`.
    build_search: BisectionResult | msgspec.UnsetType = msgspec.UNSET
    #: The methods that were tried to recover accuracy in INT8; absent where none was.
    recovery: tuple[RecoveryStep, ...] | msgspec.UnsetType = msgspec.UNSET
    #: What the guard or a budget measured, or why the guard did not run; absent where it is off.
    partial: PartialResult | str | msgspec.UnsetType = msgspec.UNSET
    #: What happened to the quantization that the model had; absent for a float model.
    existing: Existing | msgspec.UnsetType = msgspec.UNSET
    #: What became of the float part; absent where it stays FP32.
    cast: CastReport | msgspec.UnsetType = msgspec.UNSET
    #: The accuracy of the quantized model passed in, against its float model; absent unless it
    #: was run.
    original_accuracy: Accuracy | msgspec.UnsetType = msgspec.UNSET
    #: For each rtx target the engine of the quantized file beside those of FP16 files; absent where
    #: none was compiled.
    file_choices: tuple[FileChoice, ...] | msgspec.UnsetType = msgspec.UNSET


def full_sections(report: Report, *, is_target_default: bool = False) -> list[Section]:
    """Return a report's sections, and the layers of its engines.

    `is_target_default` states that the user passed no target.
    """
    sections = report_sections(report, is_target_default=is_target_default)
    if report.validation:
        for engine in report.validation.engines:
            if engine.layers:
                sections.append(layers_section(engine))
    return sections


def report_sections(report: Report, *, is_target_default: bool = False) -> list[Section]:
    """Return a report's sections, in the order of the stages.

    `is_target_default` states that the user passed no target.
    """
    sections = list(file_choice_sections(report.file_choices or ()))
    if report.plan:
        sections.append(plan_summary(report.plan, is_target_default=is_target_default))
    if isinstance(report.existing, Existing):
        sections += existing_sections(report.existing)
    if isinstance(report.build_search, BisectionResult):
        sections.append(build_search_section(report.build_search))
    if report.scales:
        sections.append(scales_summary(report.scales))
    sections += recovery_sections(report.recovery or ())
    sections += partial_sections(report.partial)
    if isinstance(report.cast, CastReport):
        sections += cast_sections(report.cast)
    if report.findings is not None:
        sections.append(findings_section(report.findings))
    if isinstance(report.original_accuracy, Accuracy):
        accuracy = accuracy_section(report.original_accuracy, "the quantized model passed in")
        sections.append(accuracy)
    if report.validation:
        sections += validation_sections(report.validation)
    if report.misses:
        sections.append(Section("Missed", report.misses))
    return sections


def findings_section(findings: Sequence[Finding]) -> Section:
    """Return one line per finding."""
    return Section("Check", tuple(map(str, findings)) or ("no findings",))
