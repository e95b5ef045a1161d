"""Sections about a cast: what computes in FP16 or BF16, what in FP32 and why, and the weights."""

from __future__ import annotations

from collections.abc import Iterator

from qdq.graph.float_types import FLOAT_TYPES
from qdq.precision.cast_model import CastReport
from qdq.precision.float_plan import KeptNode
from qdq.precision.stored_floats import WeightLoss
from qdq.reports.sections import Section, count_noun, join_names

#: A stored tensor is listed if its signal-to-noise ratio is below this, in dB.
LISTED_BELOW_DB = 50.0

#: The most stored tensors that are listed.
_MOST_LOSSES = 10


def cast_sections(report: CastReport) -> Iterator[Section]:
    """Yield the sections about a cast."""
    label = FLOAT_TYPES[report.plan.to].label
    yield Section(label, tuple(_describe(report, label)), *_kept_table(report.plan.kept))
    listed = [loss for loss in report.losses if is_listed(loss)]
    if listed:
        yield _losses_section(listed, label)


def _describe(report: CastReport, label: str) -> Iterator[str]:
    plan = report.plan
    yield f"{count_noun(plan.cast, 'node')} in {label}, {len(plan.kept)} in FP32"
    yield f"{count_noun(report.casts, 'Cast')}, {report.casts_before} before"
    if plan.checked:
        yield f"the ranges of {count_noun(plan.checked, 'tensor')} were checked for overflow"
    else:
        yield "no ranges are known, so no activation was checked for overflow"
    if plan.overflowing:
        largest = max(item.largest for item in plan.overflowing)
        nodes = join_names(list(dict.fromkeys(item.node for item in plan.overflowing)))
        yield (
            f"values up to {largest:.4g} overflow {label} in {nodes}, which no rule keeps in FP32. "
            "Add --rules float, or --keep-fp32 of these nodes."
        )
    if report.losses:
        count = count_noun(len(report.losses), "stored tensor")
        yield f"{count} with values that {label} rounds to 0, to subnormals or to its largest"


def _kept_table(
    kept: tuple[KeptNode, ...],
) -> tuple[tuple[str, ...], tuple[tuple[str, int, str], ...]]:
    """Return the headers and rows of the nodes in FP32 by their reason; empty without any."""
    by_reason: dict[str, list[str]] = {}
    for node in kept:
        by_reason.setdefault(node.because, []).append(node.node)
    rows = [(reason, len(nodes), join_names(nodes[:3])) for reason, nodes in by_reason.items()]
    headers = ("in FP32 by", "nodes", "such as") if rows else ()
    return headers, tuple(sorted(rows))


def is_listed(loss: WeightLoss) -> bool:
    """Whether a stored tensor loses so much that reports name it."""
    return loss.overflowing > 0 or loss.snr_db < LISTED_BELOW_DB


def _losses_section(losses: list[WeightLoss], label: str) -> Section:
    rows: list[tuple[str, ...]] = []
    for loss in losses[:_MOST_LOSSES]:
        counts = (loss.values, loss.overflowing, loss.lost, loss.subnormal)
        rows.append((loss.tensor, *map(str, counts), f"{loss.snr_db:.1f} dB"))
    more = len(losses) - len(rows)
    lines = (f"and {more} more (JSON lists all)",) if more > 0 else ()
    headers = ("tensor", "values", "overflow", "become 0", "subnormal", "signal-to-noise")
    return Section(f"Stored values in {label}", lines, headers, tuple(rows))
