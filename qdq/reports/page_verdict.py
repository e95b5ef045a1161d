"""The verdict of a page, and the figures that it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from qdq.checking.finding import Finding
from qdq.checking.problem import ERROR, NOTE
from qdq.data.feeds import NOISE
from qdq.metrics.metric import MetricScores
from qdq.metrics.output_errors import OutputError
from qdq.metrics.top1 import LABELS
from qdq.pipeline.file_choice import FileChoice
from qdq.reports.page import BAD, GOOD, LOOK, EngineRow, Figure, Verdict
from qdq.reports.page_engines import name_file
from qdq.reports.page_findings import count_severities
from qdq.reports.partial_sections import format_decibels
from qdq.reports.report import Report
from qdq.reports.sections import count_noun
from qdq.sensitivity.partial_result import WARN_BELOW_DB, PartialResult
from qdq.validation.accuracy import Accuracy

#: The share of labels below which a float model needs a look.
_FEW_RIGHT = 0.5

_HEADLINES = {
    GOOD: "Nothing measured here speaks against shipping",
    LOOK: "Look at this before you ship",
    BAD: "Do not ship this yet",
}


def make_verdict(bad: Sequence[str], look: Sequence[str], good: str = "") -> Verdict:
    """Return the verdict that sentences against shipping and for a look come to."""
    state = BAD if bad else LOOK if look else GOOD
    headline = _HEADLINES[state] if state != GOOD or not good else good
    return Verdict(state, headline, (*bad, *look))


def judge_report(report: Report) -> Verdict:
    """Return the verdict about a quantization or a validation."""
    bad = [f"{miss.rstrip('.')}." for miss in report.misses]
    bad += judge_findings([item for item in report.findings or () if item.severity == ERROR])
    look = judge_findings(
        [item for item in report.findings or () if item.severity not in (ERROR, NOTE)]
    )
    look += _judge_accuracy(report)
    look += _judge_engines(report)
    return make_verdict(bad, look)


def judge_findings(findings: Sequence[Finding]) -> list[str]:
    """Return a sentence about some findings; none where there are none."""
    counts = count_severities(findings)
    if not counts:
        return []
    codes = ", ".join(dict.fromkeys(finding.code for finding in findings))
    return [f"The check has {' and '.join(counts)}: {codes}."]


def _judge_accuracy(report: Report) -> Iterator[str]:
    """Yield what is bad or unknown about the accuracy."""
    accuracy = report.validation.accuracy if report.validation else None
    data = accuracy.data if accuracy else report.scales.data if report.scales else ""
    if data == NOISE:
        yield "The data is noise: accuracy on real inputs is not known."
    yield from describe_low_score(accuracy)
    partial = report.partial
    worst = _find_worst(accuracy)
    if worst is not None:
        if worst.snr_db < WARN_BELOW_DB:
            yield (
                f"Output {worst.name} has a signal-to-noise ratio of {worst.snr_db:.1f} dB; below "
                f"{WARN_BELOW_DB:.0f} dB most tasks lose accuracy."
            )
    elif isinstance(partial, PartialResult):
        if partial.snr_db < WARN_BELOW_DB:
            yield (
                f"The outputs have a signal-to-noise ratio of {format_decibels(partial.snr_db)} "
                f"on the calibration samples; below {WARN_BELOW_DB:.0f} dB most tasks lose "
                "accuracy."
            )
    else:
        yield "The accuracy was not measured here: qdq validate --data does."


def describe_low_score(accuracy: Accuracy | None) -> Iterator[str]:
    """Yield a sentence where the float model itself is wrong about most labels."""
    scores = accuracy.metric if accuracy is not None else None
    if not isinstance(scores, MetricScores) or scores.basis != LABELS:
        return
    if scores.float_model is not None and scores.float_model < _FEW_RIGHT:
        yield (
            f"The float model itself has {scores.name} {scores.float_model:.4g} by these labels. "
            "If it should be better, its classes have another order (--labels), or the "
            "preprocessing is not that of its training."
        )


def _judge_engines(report: Report) -> Iterator[str]:
    """Yield where the quantized engine is larger than another one."""
    larger = [choice for choice in report.file_choices or () if choice.is_larger]
    for choice in larger:
        yield describe_larger(choice)
    described = {choice.target for choice in larger}
    for engine in report.validation.engines if report.validation else ():
        if engine.remark and not engine.failure and engine.target not in described:
            yield f"{engine.remark.rstrip('.')}."


def describe_larger(choice: FileChoice) -> str:
    """Return a sentence about a target where another file has a smaller engine."""
    smallest = choice.find(choice.smallest)
    if smallest is None:
        return f"{choice.target}: no file builds."
    name = name_file(smallest, choice.types)
    sentence = (
        f"{choice.target}: {name} has the smallest engine, {smallest.bytes / 1e6:.4g} MB in "
        f"{count_noun(smallest.kernels, 'kernel')}."
    )
    return f"{sentence} To write it: {smallest.command}" if smallest.command else sentence


def list_figures(report: Report, engines: Sequence[EngineRow]) -> Iterator[Figure]:
    """Yield the figures of a quantization or a validation: accuracy, then cost, then coverage."""
    accuracy = report.validation.accuracy if report.validation else None
    yield from _accuracy_figures(accuracy)
    if accuracy is None and isinstance(report.partial, PartialResult):
        yield Figure(
            "Signal-to-noise at the outputs",
            format_decibels(report.partial.snr_db),
            f"{count_noun(report.partial.samples, 'calibration sample')}",
        )
    yield from engine_figures(engines)
    if isinstance(report.partial, PartialResult):
        yield Figure("Multiplications in INT8", f"{report.partial.int8_work:.1%}")
    if report.plan:
        kept = len(report.plan.left_float)
        yield Figure(
            "Edges quantized", str(len(report.plan.placements)), f"{kept} decided for float"
        )


def _accuracy_figures(accuracy: Accuracy | None) -> Iterator[Figure]:
    if accuracy is None:
        return
    scores = accuracy.metric
    if isinstance(scores, MetricScores):
        note = f"{count_noun(accuracy.samples, 'sample')} of {accuracy.data}"
        if scores.float_model is not None and scores.drop is not None:
            note = f"float {scores.float_model:.5g}, drop {scores.drop:.4g}; {note}"
        yield Figure(f"Score: {scores.name}", f"{scores.quantized:.5g}", note)
    worst = _find_worst(accuracy)
    if worst is not None:
        outputs = len(accuracy.outputs)
        which = f"worst of {outputs} outputs: {worst.name}" if outputs > 1 else worst.name
        note = f"{which}; {count_noun(accuracy.samples, 'sample')}"
        yield Figure("Signal-to-noise", format_decibels(worst.snr_db), note)
    agreements: list[float] = []
    for output in accuracy.outputs:
        if output.top1_agreement is not None:
            agreements.append(output.top1_agreement)
    if agreements:
        yield Figure("Same top class", f"{min(agreements):.1%}", "quantized against float")


def _find_worst(accuracy: Accuracy | None) -> OutputError | None:
    """Return the output with the least signal-to-noise ratio."""
    if accuracy is None or not accuracy.outputs:
        return None
    return min(accuracy.outputs, key=_snr_or_least)


def _snr_or_least(output: OutputError) -> float:
    return -math.inf if math.isnan(output.snr_db) else output.snr_db


def engine_figures(engines: Sequence[EngineRow]) -> Iterator[Figure]:
    """Yield the bytes and kernels of each target's quantized engine beside the others."""
    for target in dict.fromkeys(row.target for row in engines):
        rows = [row for row in engines if row.target == target]
        quantized = next((row for row in rows if row.file not in ("float", "FP16 alone")), None)
        if quantized is None:
            continue
        label = f"Moved on {target}, {quantized.kind}"
        if quantized.failure:
            yield Figure(label, "does not build", quantized.file)
            continue
        others = [
            f"{row.file} {row.megabytes:.4g} MB"
            for row in rows
            if row is not quantized and not row.failure
        ]
        kernels = count_noun(quantized.kernels, "kernel")
        note = "; ".join([f"{quantized.file}, {kernels}", *others])
        yield Figure(label, f"{quantized.megabytes:.4g} MB", note)
