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
    WeightChange,
)
from qdq.quantized.symmetry import CoarserActivation
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
    pair = change.old or change.new
    if change.old and change.new and change.old != change.new:
        pair = f"{change.old} -> {change.new}"
    line = f"{_SIGNS[change.kind]} {edge}  {pair}"
    if change.ratio is not None and change.ratio != 1.0:
        line = f"{line} ({change.ratio:.4g} times)"
    return f"{line}  {change.rules}" if change.rules else line


def existing_sections(existing: Existing) -> list[Section]:
    """Return what happened to the quantization that a model had."""
    operators = Counter(f"{node.op} {node.conversion}" for node in existing.converted)
    lines = [f"{count} {operator}" for operator, count in operators.items()]
    if existing.coarser:
        coarser = sorted(existing.coarser, key=lambda activation: -activation.step_ratio)
        lines.append(
            f"{len(coarser)} tensors become symmetric INT8, with larger steps; these most:"
        )
        lines += [_coarser_line(activation) for activation in coarser[:_MOST_COARSER]]
    lines += [_rescaled_line(weight) for weight in existing.weights]
    if existing.calibrated:
        tensors = join_names(existing.calibrated)
        lines.append(
            f"{len(existing.calibrated)} tensors were calibrated, because they had no range or "
            f"would get larger steps in symmetric INT8: {tensors}"
        )
    changes = diff_sections(existing.changes, _MOST_CHANGES)
    return [Section("Was quantized already", tuple(lines)), *changes]


def fixed_lines(existing: Existing) -> list[str]:
    """Return the changes of a model that was fixed, one sentence per change."""
    lines = [f"{node.node}: {node.op} {node.conversion}" for node in existing.converted]
    lines += [_coarser_line(activation) for activation in existing.coarser]
    lines += [_rescaled_line(weight) for weight in existing.weights]
    coarser_tensors = {activation.tensor for activation in existing.coarser}
    for change in existing.changes.pairs:
        # The line of a coarser activation describes its new format already.
        if change.kind != FORMAT or change.edge.qualified_tensor not in coarser_tensors:
            lines.append(change_line(change))
    return lines


def _summary_line(diff: PairDiff) -> str:
    counts = Counter(change.kind for change in diff.pairs)
    changes = []
    for kind in _SIGNS:
        if counts[kind]:
            changes.append(f"{counts[kind]} {_ADJECTIVES.get(kind, kind)}")
    summary = ", ".join(changes) or "the same pairs"
    edges = f"{diff.old_pairs} quantized edges, then {diff.new_pairs}"
    return f"{diff.old} -> {diff.new}: {edges}: {summary}"


def _other_lines(diff: PairDiff) -> Iterator[str]:
    if diff.nodes_added:
        yield f"nodes added: {join_names(diff.nodes_added)}"
    if diff.nodes_removed:
        yield f"nodes removed: {join_names(diff.nodes_removed)}"
    if diff.weights:
        weights = [_weight_change(weight) for weight in diff.weights]
        yield f"stored weights that differ: {join_names(weights)}"
    for key, old, new in diff.metadata:
        yield f"{key}: {_join_lines(old)} -> {_join_lines(new)}"


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
