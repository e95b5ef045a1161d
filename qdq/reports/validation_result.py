"""The first section of `qdq validate`: the accuracy, the engines and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qdq.data.feeds import NOISE
from qdq.metrics.metric import MetricScores
from qdq.reports.engine_layers import count_layers
from qdq.reports.page_verdict import describe_low_score, judge_report
from qdq.reports.partial_sections import format_decibels
from qdq.reports.report import Report
from qdq.reports.result_section import find_ratio, list_warnings
from qdq.reports.sections import Section, count_noun
from qdq.validation.accuracy import Accuracy
from qdq.validation.engine_report import EngineReport
from qdq.validation.validator import Thresholds, Validation

_MEGABYTE = 1e6


def validation_result_section(report: Report, name: str, thresholds: Thresholds) -> Section:
    """Return the result for a model that was validated; `name` is that of its file."""
    accuracy = report.validation.accuracy if report.validation else None
    parts = list(_describe_accuracy(report, accuracy))
    if report.misses:
        parts.append(f"{len(report.misses)} missed")
    elif thresholds != Thresholds():
        parts.append("no threshold missed")
    lines = [f"{name}: {'; '.join(parts)}", *_describe_engines(report.validation)]
    if accuracy is not None and accuracy.data == NOISE:
        lines.append("warning: the data is noise, so the accuracy on real inputs is not known")
    lines += [f"warning: {sentence}" for sentence in describe_low_score(accuracy)]
    lines += list_warnings(report)
    lines.append(f"verdict: {judge_report(report).headline}")
    return Section("Result", tuple(lines))


def describe_engine(engine: EngineReport) -> str:
    """Return the layers of an engine by type, and its cost against that of the float engine."""
    if engine.failure:
        return "does not build"
    return "; ".join([count_layers(engine), *_describe_cost(engine)])


def _describe_accuracy(report: Report, accuracy: Accuracy | None) -> Iterator[str]:
    if accuracy is None:
        yield "accuracy not measured"
        return
    scores = accuracy.metric
    if isinstance(scores, MetricScores):
        against = "" if scores.float_model is None else f" (float {scores.float_model:.5g})"
        yield f"{scores.name} {scores.quantized:.5g}{against}"
    ratio = find_ratio(report)
    if ratio is None or math.isnan(ratio):
        yield "no output could be compared"
        return
    text = format_decibels(ratio)
    yield text if math.isinf(ratio) else f"{text} signal-to-noise"
    agreements = [output.top1_agreement for output in accuracy.outputs]
    known = [agreement for agreement in agreements if agreement is not None]
    if known:
        yield f"{min(known):.1%} same top class"


def _describe_engines(validation: Validation | None) -> Iterator[str]:
    """Yield a line for each engine; targets with equal ones share it."""
    targets: dict[tuple[str, str], list[str]] = {}
    for engine in validation.engines if validation else ():
        targets.setdefault((engine.kind, describe_engine(engine)), []).append(engine.target)
    for (kind, text), names in targets.items():
        yield f"{', '.join(names)} ({kind}): {text}"


def _describe_cost(engine: EngineReport) -> Iterator[str]:
    kernels = count_noun(engine.kernels, "kernel")
    if engine.kind == "read":
        yield kernels
        return
    cost = f"{_format_bytes(engine.bytes)} moved in {kernels}"
    if engine.float_failure:
        yield f"{cost}, float does not build"
    else:
        float_bytes = _format_bytes(engine.float_bytes)
        cost += f", float {float_bytes} in {engine.float_kernels}"
        yield f"{cost}{_compare_bytes(engine)}"
    if engine.milliseconds is not None:
        against = ""
        if engine.float_milliseconds is not None:
            against = f", float {engine.float_milliseconds:.3f} ms"
        yield f"{engine.milliseconds:.3f} ms{against}"


def _format_bytes(size: float) -> str:
    return f"{size / _MEGABYTE:.4g} MB"


def _compare_bytes(engine: EngineReport) -> str:
    """Return the share of bytes that an engine has more or fewer than the float engine."""
    if not engine.float_bytes:
        return ""
    change = engine.bytes / engine.float_bytes - 1
    return f" ({abs(change):.0%} {'more' if change > 0 else 'fewer'} bytes)"
