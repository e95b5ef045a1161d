"""Changes of Q/DQ in words: between two models, and what became of the quantization that a model had."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from qdq.pipeline.requantize import Existing
from qdq.quantized.pair_diff import ADDED, FORMAT, MOVED, REMOVED, RESCALED, PairChange, PairDiff
from qdq.quantized.symmetry import CoarserActivation
from qdq.reports.sections import Section

_SIGNS = {ADDED: "+", REMOVED: "-", MOVED: ">", RESCALED: "~", FORMAT: "!"}

#: How many names a line holds; JSON has all.
_NAMES = 8

#: How many changes a report of `quantize` shows.
_SHOWN = 40

#: How many tensors that lose resolution are named.
_MOST = 5


def diff_sections(found: PairDiff, most: int | None = None) -> Iterator[Section]:
    """Yield a diff in words: the pairs, at most some of them, then what differs besides."""
    counts = Counter(change.kind for change in found.pairs)
    head = f"{found.old} -> {found.new}: {found.old_pairs} quantized edges, then {found.new_pairs}"
    changes = ", ".join(
        f"{counts[kind]} {_WORDS.get(kind, kind)}" for kind in _SIGNS if counts[kind]
    )
    shown = found.pairs if most is None else found.pairs[:most]
    rest = len(found.pairs) - len(shown)
    more = (
        (f"and {rest} more (--format json, and a report that ends in .json, have all)",)
        if rest
        else ()
    )
    yield Section(
        "Pairs", (f"{head}: {changes or 'the same pairs'}", *map(change_line, shown), *more)
    )
    if besides := tuple(_besides(found)):
        yield Section("Besides", besides)


_WORDS = {FORMAT: "of another format"}


def change_line(change: PairChange) -> str:
    """Return a change as one line: its sign, the edge, how the pair quantizes, and its rules."""
    edge = f"{change.moved_from} => {change.edge}" if change.moved_from else str(change.edge)
    said = (
        change.old
        if change.old == change.new
        else f"{change.old} -> {change.new}"
        if change.old and change.new
        else change.old or change.new
    )
    ratio = f" ({change.ratio:.4g} times)" if change.ratio not in (None, 1.0) else ""
    return f"{_SIGNS[change.kind]} {edge}  {said}{ratio}" + (
        f"  {change.rules}" if change.rules else ""
    )


def _besides(found: PairDiff) -> Iterator[str]:
    for what, names in (("nodes added", found.nodes_added), ("nodes removed", found.nodes_removed)):
        if names:
            yield f"{what}: {_listed(names)}"
    if found.weights:
        changed = [
            f"{w.edge} by {'other dimensions' if w.largest_change is None else f'{w.largest_change:.3g}'}"
            for w in found.weights
        ]
        yield f"stored weights that differ: {_listed(changed)}"
    yield from (f"{key}: {_flat(old)} -> {_flat(new)}" for key, old, new in found.metadata)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES]) + (
        f" and {len(names) - _NAMES} more (--format json has all)" if len(names) > _NAMES else ""
    )


def _flat(text: str) -> str:
    return ", ".join(text.split("\n")) or "none"


def existing_sections(existing: Existing) -> list[Section]:
    """Return what became of the quantization that a model had, in words."""
    converted = Counter(f"{item.op} {item.conversion}" for item in existing.converted)
    lines = [f"{count} {op}" for op, count in converted.items()]
    if existing.coarser:
        lines.append(
            f"{len(existing.coarser)} tensors become symmetric INT8, with larger steps; these most:"
        )
        lines += [
            _coarser_line(cost)
            for cost in sorted(existing.coarser, key=lambda c: -c.step_ratio)[:_MOST]
        ]
    lines += [f"{weight.tensor} gets new scales: it {weight.reason}" for weight in existing.weights]
    if existing.calibrated:
        why = "which had no range, or would step through it more coarsely in symmetric INT8"
        lines.append(
            f"{len(existing.calibrated)} were calibrated, {why}: {_listed(existing.calibrated)}"
        )
    return [
        Section("Was quantized already", tuple(lines)),
        *diff_sections(existing.changes, _SHOWN),
    ]


def fixed_lines(existing: Existing) -> list[str]:
    """Return what was done to a model that was mended, one sentence each."""
    lines = [f"{item.node}: {item.op} {item.conversion}" for item in existing.converted]
    lines += [_coarser_line(cost) for cost in existing.coarser]
    lines += [f"{weight.tensor} gets new scales: it {weight.reason}" for weight in existing.weights]
    told = {cost.tensor for cost in existing.coarser}
    return lines + [
        change_line(change)
        for change in existing.changes.pairs
        if not (change.kind == FORMAT and change.edge.qualified_tensor in told)
    ]


def _coarser_line(cost: CoarserActivation) -> str:
    return f"{cost.tensor}: {cost.dtype} with zero point {cost.zero_point}, steps {cost.step_ratio:.3g} times as large ({20 * math.log10(cost.step_ratio):.1f} dB)"
