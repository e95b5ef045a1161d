"""The pages of the commands: from the records that each of them makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from qdq.checking.problem import ERROR
from qdq.graph.float_types import FLOAT_TYPES
from qdq.graph.source import ModelLike
from qdq.pipeline.float_sensitivity import FloatSensitivity
from qdq.pipeline.quantize_model import Quantized
from qdq.pipeline.sensitivity_analysis import Sensitivity
from qdq.quantized.pair_diff import PairDiff
from qdq.reports.changes import diff_sections
from qdq.reports.model_graphs import NodeFacts, graph_model, graph_quantized
from qdq.reports.node_facts import collect_changes, collect_report_facts
from qdq.reports.page import Figure, Page, Verdict
from qdq.reports.page_charts import (
    list_bars,
    list_float_bars,
    list_histograms,
    list_layer_curves,
    list_trade_offs,
    list_worst_bars,
)
from qdq.reports.page_engines import list_engines
from qdq.reports.page_findings import count_severities, group_findings
from qdq.reports.page_graph import PageGraph
from qdq.reports.page_verdict import (
    judge_findings,
    judge_report,
    list_figures,
    make_verdict,
)
from qdq.reports.partial_sections import format_decibels
from qdq.reports.report import Report, full_sections
from qdq.reports.sarif import CheckedModel
from qdq.reports.sections import Section, count_noun
from qdq.reports.sensitivity_sections import float_sensitivity_sections, sensitivity_sections
from qdq.reports.validation_sections import accuracy_section
from qdq.rules.rule import RuleSet
from qdq.sensitivity.partial_result import WARN_BELOW_DB

#: The worst groups or nodes that a verdict names.
_MOST_NAMED = 3

#: The changed pairs that a page lists; the graph shows all.
_MOST_CHANGES = 200

#: The changed pairs above which their list is folded.
_MANY_CHANGES = 15


def quantize_page(
    report: Report, result: Quantized, rules: RuleSet, output: str, is_target_default: bool
) -> Page:
    """Return the page of `quantize`, for the file that it writes."""
    graph = graph_quantized(result, rules, result.cast, collect_report_facts(report))
    page = _report_page(
        "quantize", f"{report.plan.model if report.plan else ''} → {output}", report
    )
    return msgspec.structs.replace(
        page,
        graph=graph,
        histograms=list_histograms(result.ranges, result.scales),
        details=_list_details(report, page, is_target_default),
    )


def validation_page(report: Report, quantized: ModelLike) -> Page:
    """Return the page of `validate`."""
    title = "validation"
    if report.validation:
        title = f"{report.validation.model} against {report.validation.quantized}"
    page = _report_page("validate", title, report)
    return msgspec.structs.replace(
        page,
        graph=graph_model(quantized, collect_report_facts(report)),
        details=_list_details(report, page),
    )


def _list_details(
    report: Report, page: Page, is_target_default: bool = False
) -> tuple[Section, ...]:
    """Return the sections of a report that a page does not show already."""
    sections = full_sections(report, is_target_default=is_target_default)
    return tuple(section for section in sections if section not in page.results)


def _report_page(command: str, title: str, report: Report) -> Page:
    engines = list_engines(
        report.validation.engines if report.validation else (), report.file_choices or ()
    )
    results: list[Section] = []
    if report.validation and report.validation.accuracy:
        results.append(accuracy_section(report.validation.accuracy))
    return Page(
        command=command,
        title=title,
        verdict=judge_report(report),
        figures=tuple(list_figures(report, engines)),
        results=tuple(results),
        engines=engines,
        bars=tuple(list_worst_bars(report.partial)),
        curves=tuple(list_trade_offs(report.partial)),
        findings=group_findings(report.findings or ()),
    )


def check_page(models: Sequence[CheckedModel]) -> Page:
    """Return the page of `check`; one of a single model has its network."""
    findings = [finding for checked in models for finding in checked.findings]
    errors = [finding for finding in findings if finding.severity == ERROR]
    others = [finding for finding in findings if finding.severity != ERROR]
    failures = [checked.failure for checked in models if checked.failure]
    verdict = make_verdict(
        [*failures, *judge_findings(errors)], judge_findings(others), "The check has no findings"
    )
    is_single = len(models) == 1
    title = Path(models[0].model).name if is_single else count_noun(len(models), "model")
    graph = None
    if is_single and not failures:
        notes = collect_report_facts(Report(findings=tuple(findings)))
        graph = graph_model(models[0].model, notes)
    groups = [
        group
        for checked in models
        for group in group_findings(checked.findings, "" if is_single else checked.model)
    ]
    return Page(
        command="check",
        title=title,
        verdict=verdict,
        figures=(Figure("Findings", ", ".join(count_severities(findings)) or "none"),),
        results=() if is_single else (_models_section(models),),
        graph=graph,
        findings=tuple(groups),
        details=tuple(_fixed_sections(models)),
    )


def check_sections(models: Sequence[CheckedModel]) -> list[Section]:
    """Return the findings in each model, one line each."""
    sections = _fixed_sections(models)
    for checked in models:
        lines = tuple(map(str, checked.findings)) or ("no findings",)
        if checked.failure:
            lines = (checked.failure,)
        sections.append(Section(checked.model, lines))
    return sections


def _models_section(models: Sequence[CheckedModel]) -> Section:
    rows: list[tuple[str, str]] = []
    for checked in models:
        outcome = checked.failure or ", ".join(count_severities(checked.findings))
        rows.append((checked.model, outcome or "no findings"))
    return Section("Models", (), ("model", "findings"), tuple(rows))


def _fixed_sections(models: Sequence[CheckedModel]) -> list[Section]:
    sections: list[Section] = []
    for checked in models:
        if checked.fixed:
            sections.append(Section(f"Fixed in {checked.model}", checked.fixed))
    return sections


def sensitivity_page(sensitivity: Sensitivity, graph: PageGraph | None, top: int) -> Page:
    """Return the page of `sensitivity`."""
    look: list[str] = []
    ratio = f"{format_decibels(sensitivity.int8_snr_db)} with all groups in INT8"
    if sensitivity.int8_snr_db < WARN_BELOW_DB:
        worst = ", ".join(group.name for group in sensitivity.groups[:_MOST_NAMED])
        look.append(
            f"The signal-to-noise ratio is {ratio}; below "
            f"{WARN_BELOW_DB:.0f} dB most tasks lose accuracy. These make most of the noise: "
            f"{worst}."
        )
    return Page(
        command="sensitivity",
        title=sensitivity.quantized or sensitivity.model,
        verdict=make_verdict((), look, f"The signal-to-noise ratio is {ratio}"),
        figures=tuple(_sensitivity_figures(sensitivity)),
        graph=graph,
        bars=tuple(list_bars(sensitivity)),
        curves=tuple(list_layer_curves(sensitivity.layers)),
        details=tuple(sensitivity_sections(sensitivity, top)),
    )


def _sensitivity_figures(sensitivity: Sensitivity) -> list[Figure]:
    figures = [
        Figure(
            "Signal-to-noise, all in INT8",
            format_decibels(sensitivity.int8_snr_db),
            f"{count_noun(sensitivity.samples, 'sample')} at {', '.join(sensitivity.measured_at)}",
        ),
        Figure("Signal-to-noise at the outputs", format_decibels(sensitivity.output_snr_db)),
        Figure("Multiplications in INT8", f"{sensitivity.int8_work:.1%}"),
    ]
    if sensitivity.metric:
        metric = sensitivity.metric
        note = f"float {metric.float_model:.4g}, drop {metric.float_model - metric.int8:.4g}"
        figures.insert(0, Figure(f"Score: {metric.name}", f"{metric.int8:.4g}", note))
    return figures


def float_sensitivity_page(sensitivity: FloatSensitivity, graph: PageGraph | None) -> Page:
    """Return the page of `sensitivity --float`."""
    label = FLOAT_TYPES[sensitivity.to].label
    ratio = f"{format_decibels(sensitivity.cast_snr_db)} in {label}"
    look: list[str] = []
    if sensitivity.cast_snr_db < WARN_BELOW_DB:
        worst = ", ".join(node.node for node in sensitivity.nodes[:_MOST_NAMED] if not node.kept)
        look.append(
            f"The signal-to-noise ratio is {ratio}; below {WARN_BELOW_DB:.0f} dB most tasks lose "
            f"accuracy. Keep the worst nodes in FP32 (--keep-fp32): {worst or 'none was measured'}."
        )
    samples = count_noun(sensitivity.samples, "sample")
    title = f"Signal-to-noise, all nodes in {label}"
    kept = count_noun(len(sensitivity.kept), "node")
    return Page(
        command="sensitivity",
        title=sensitivity.model,
        verdict=make_verdict((), look, f"The signal-to-noise ratio is {ratio}"),
        figures=(
            Figure(title, format_decibels(sensitivity.all_snr_db), samples),
            Figure(
                "With those kept that the rules keep",
                format_decibels(sensitivity.cast_snr_db),
                kept,
            ),
        ),
        graph=graph,
        bars=tuple(list_float_bars(sensitivity)),
        details=tuple(float_sensitivity_sections(sensitivity)),
    )


def diff_page(changes: PairDiff, new: ModelLike) -> Page:
    """Return the page of `diff`, with the network of the newer model."""
    facts: NodeFacts = collect_changes(changes)
    sections = tuple(diff_sections(changes, _MOST_CHANGES))
    is_long = len(changes.pairs) > _MANY_CHANGES
    kinds = dict.fromkeys(change.kind for change in changes.pairs)
    counts = [(kind, sum(change.kind == kind for change in changes.pairs)) for kind in kinds]
    verdict = Verdict("good", "Both models have the same pairs")
    if changes.pairs:
        summary = ", ".join(f"{count} {kind}" for kind, count in counts)
        verdict = Verdict("look", "The models have other pairs", (f"Pairs: {summary}.",))
    return Page(
        command="diff",
        title=f"{changes.old} → {changes.new}",
        verdict=verdict,
        figures=(
            Figure("Quantized edges", str(changes.new_pairs), f"{changes.old_pairs} before"),
            *(Figure(f"Pairs {kind}", str(count)) for kind, count in counts),
        ),
        results=() if is_long else sections,
        graph=graph_model(new, facts),
        details=sections if is_long else (),
    )
