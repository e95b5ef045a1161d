"""Sections about changes of Q/DQ: between two models, and of the quantization that a model had."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from qdq.pipeline.requantize import Existing, RescaledWeight
from qdq.quantized.pair_diff import (
    ADDED,
    FORMAT,
    MOVED,
    REMOVED,
    RESCALED,
    PairChange,
    PairDiff,
)
from qdq.quantized.symmetry import CoarserActivation
from qdq.quantized.weight_diff import WeightChange
from qdq.reports.sections import Section, join_names

_SIGNS = {ADDED: "+", REMOVED: "-", MOVED: ">", RESCALED: "~", FORMAT: "!"}

#: The kinds of changes in a sentence; others are adjectives already.
_ADJECTIVES = {FORMAT: "of another format"}

#: How many changes a report of `quantize` shows.
_MOST_CHANGES = 40

#: How many tensors are shown that lose resolution.
_MOST_COARSER = 5


def diff_sections(diff: PairDiff, most: int | None = None) -> Iterator[Section]:
    """Yield the changed pairs of a diff, at most `most` of them, and the other differences."""
    changes = diff.pairs if most is None else diff.pairs[:most]
    lines = [_summary_line(diff), *map(change_line, changes)]
    hidden = len(diff.pairs) - len(changes)
    if hidden:
        lines.append(
            f"and {hidden} more (--format json, and a report that ends in .json, have all)"
        )
    yield Section("Pairs", tuple(lines))
    others = tuple(_other_lines(diff))
    if others:
        yield Section("Other differences", others)


def change_line(change: PairChange) -> str:
    """Return a change as one line: its sign, the edge, how the pair quantizes, and its rules."""
    edge = str(change.edge)
    if change.moved_from:
        edge = f"{change.moved_from} => {edge}"
    pair = _describe_pair(change.old, change.new)
    sign = _SIGNS[change.kind]
    line = f"{sign} {edge}  {pair}"
    ratio = change.ratio
    if ratio is not None and ratio != 1.0:
        line += f" ({ratio:.4g} times)"
    if change.rules:
        line += f"  {change.rules}"
    return line


def existing_sections(existing: Existing) -> list[Section]:
    """Return the changes of the quantization that a model had."""
    lines = _count_conversions(existing)
    coarser = sorted(existing.coarser, key=_step_ratio, reverse=True)
    if coarser:
        count = len(coarser)
        lines.append(f"{count} tensors become symmetric INT8, with larger steps; these most:")
        lines += map(_coarser_line, coarser[:_MOST_COARSER])
    lines += map(_rescaled_line, existing.weights)
    if existing.calibrated:
        count = len(existing.calibrated)
        tensors = join_names(existing.calibrated)
        lines.append(
            f"{count} tensors were calibrated, because they had no range or would get larger "
            f"steps in symmetric INT8: {tensors}"
        )
    section = Section("Was quantized already", tuple(lines))
    changes = diff_sections(existing.changes, _MOST_CHANGES)
    return [section, *changes]


def fix_diff_lines(existing: Existing) -> list[str]:
    """Return the conversions of nodes that a fix needs, and its pairs as `diff_sections` has."""
    return [*_conversion_lines(existing), *map(change_line, existing.changes.pairs)]


def fixed_lines(existing: Existing) -> list[str]:
    """Return the changes of a model that was fixed, one sentence per change."""
    lines = _conversion_lines(existing)
    lines += map(_coarser_line, existing.coarser)
    lines += map(_rescaled_line, existing.weights)
    coarser_tensors = {activation.tensor for activation in existing.coarser}
    for change in existing.changes.pairs:
        # The line of a coarser activation describes its new format already.
        is_described = change.edge.qualified_tensor in coarser_tensors
        if change.kind != FORMAT or not is_described:
            lines.append(change_line(change))
    return lines


def _conversion_lines(existing: Existing) -> list[str]:
    return [f"{node.node}: {node.op} {node.conversion}" for node in existing.converted]


def _describe_pair(old: str, new: str) -> str:
    """Return how a pair quantizes in the older and the newer model, once where that is equal."""
    if old and new and old != new:
        return f"{old} -> {new}"
    return old or new


def _count_conversions(existing: Existing) -> list[str]:
    """Return how many nodes of each operator were first written in other operators."""
    counts = Counter[str]()
    for node in existing.converted:
        counts[f"{node.op} {node.conversion}"] += 1
    return [f"{count} {operator}" for operator, count in counts.items()]


def _step_ratio(activation: CoarserActivation) -> float:
    return activation.step_ratio


def _summary_line(diff: PairDiff) -> str:
    counts = Counter(change.kind for change in diff.pairs)
    changes = []
    for kind in _SIGNS:
        count = counts[kind]
        if count:
            adjective = _ADJECTIVES.get(kind, kind)
            changes.append(f"{count} {adjective}")
    summary = ", ".join(changes) or "the same pairs"
    edges = f"{diff.old_pairs} quantized edges, then {diff.new_pairs}"
    if diff.tolerance:
        summary += f", scales within {100 * diff.tolerance:g} % counted as the same"
    return f"{diff.old} -> {diff.new}: {edges}: {summary}"


def _other_lines(diff: PairDiff) -> Iterator[str]:
    if diff.nodes_added:
        yield f"nodes added: {join_names(diff.nodes_added)}"
    if diff.nodes_removed:
        yield f"nodes removed: {join_names(diff.nodes_removed)}"
    if diff.weights:
        weights = list(map(_weight_change, diff.weights))
        yield f"stored weights that differ: {join_names(weights)}"
    for key, old, new in diff.metadata:
        old_value = _join_lines(old)
        new_value = _join_lines(new)
        yield f"{key}: {old_value} -> {new_value}"


def _weight_change(weight: WeightChange) -> str:
    if weight.largest_change is None:
        return f"{weight.edge} by other dimensions"
    return f"{weight.edge} by {weight.largest_change:.3g}"


def _join_lines(text: str) -> str:
    return ", ".join(text.split("\n")) or "none"


def _rescaled_line(weight: RescaledWeight) -> str:
    return f"{weight.tensor} gets new scales: it {weight.reason}"


def _coarser_line(activation: CoarserActivation) -> str:
    ratio = activation.step_ratio
    decibels = 20 * math.log10(ratio)
    return (
        f"{activation.tensor}: {activation.dtype} with zero point {activation.zero_point}, "
        f"steps {ratio:.3g} times as large ({decibels:.1f} dB)"
    )
