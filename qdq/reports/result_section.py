"""The section that the text of `qdq quantize` begins with: what came out, in one line or two."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from qdq.pipeline.file_choice import QUANTIZED, FileChoice
from qdq.planning.decisions import Plan
from qdq.quantizer import ELEMENT_TYPES
from qdq.reports.partial_sections import format_decibels
from qdq.reports.report import Report
from qdq.reports.sections import Section, count_noun
from qdq.sensitivity.partial_result import WARN_BELOW_DB, PartialResult


def result_section(report: Report, name: str) -> Section:
    """Return the result for a model and warnings; `name` is that of the file."""
    parts = [_count_edges(report.plan), _describe_accuracy(report)]
    if report.findings is not None:
        count = len(report.findings)
        parts.append(count_noun(count, "finding") if count else "no findings")
    if report.misses:
        parts.append(f"{len(report.misses)} missed")
    line = f"{name}: {'; '.join(filter(None, parts))}"
    return Section("Result", (line, *list_warnings(report)))


def find_ratio(report: Report) -> float | None:
    """Return the least signal-to-noise ratio of an output in dB, None where none was measured."""
    if report.validation is not None and report.validation.accuracy is not None:
        outputs = report.validation.accuracy.outputs
        return min((output.snr_db for output in outputs), default=None)
    if isinstance(report.partial, PartialResult):
        return report.partial.snr_db
    return None


def is_inaccurate(report: Report) -> bool:
    """Whether most tasks lose accuracy at the measured signal-to-noise ratio, or a goal is missed.

    An infinite ratio has no error.
    """
    ratio = find_ratio(report)
    return bool(report.misses) or (ratio is not None and ratio < WARN_BELOW_DB)


def list_warnings(report: Report) -> Iterator[str]:
    """Yield what speaks against the result: a low ratio, and engines larger than those of FP16."""
    ratio = find_ratio(report)
    if ratio is not None and ratio < WARN_BELOW_DB:
        yield f"warning: below {WARN_BELOW_DB:g} dB most tasks lose accuracy"
    targets: dict[str, list[str]] = {}
    for choice in report.file_choices or ():
        targets.setdefault(_describe_choice(choice), []).append(choice.target)
    for fact, names in targets.items():
        if fact:
            yield f"warning: for {', '.join(names)} {fact}"


def _count_edges(plan: Plan | None) -> str:
    placements = plan.placements if plan is not None else ()
    counts = Counter(ELEMENT_TYPES[item.quantizer.dtype].label for item in placements)
    edges = [f"{count_noun(count, 'edge')} in {label}" for label, count in counts.most_common()]
    return ", ".join(edges) or "no edge quantized"


def _describe_accuracy(report: Report) -> str:
    ratio = find_ratio(report)
    if ratio is None:
        return "accuracy not measured"
    text = format_decibels(ratio)
    return text if math.isinf(ratio) else f"{text} signal-to-noise"


def _describe_choice(choice: FileChoice) -> str:
    """Return why a quantized file is no choice for its target, "" where it is one."""
    quantized = choice.find(QUANTIZED)
    if not choice.is_larger or quantized is None:
        return ""
    if quantized.failure:
        return f"the {choice.types} model does not build"
    return f"the {choice.types} engine is larger than that of FP16 alone"
