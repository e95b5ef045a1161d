"""`qdq diff`: pairs added, removed, moved and rescaled between two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from qdq.cli.options import FILE, format_option, show
from qdq.pairdiff import ADDED, FORMAT, MOVED, REMOVED, RESCALED, PairChange, PairDiff, diff
from qdq.reporting import Section

_SIGNS = {ADDED: "+", REMOVED: "-", MOVED: ">", RESCALED: "~", FORMAT: "!"}
#: How many names a line holds; JSON has all.
_NAMES = 8


@click.command("diff")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@format_option
@click.pass_context
def command(ctx: click.Context, old: Path, new: Path, layout: str) -> None:
    """Print which Q/DQ pairs NEW has and OLD has not, and the other way round, which moved, and which have other scales.

    Either may be a float model, and both may come from other tools or from exports that name nodes
    otherwise. Exit 0 if they have the same pairs, 1 if not.

    \b
    Example:
      qdq diff resnet50.int8.onnx resnet50.repaired.onnx
      qdq diff resnet50.onnx resnet50.int8.onnx --format json
    """
    found = diff(old, new)
    show(layout, found, list(diff_sections(found)))
    ctx.exit(1 if found else 0)


def diff_sections(found: PairDiff) -> Iterator[Section]:
    """Yield a diff in words: the pairs, then what differs besides."""
    counts = Counter(change.kind for change in found.pairs)
    head = f"{found.old} -> {found.new}: {found.old_pairs} quantized edges, then {found.new_pairs}"
    changes = ", ".join(f"{counts[kind]} {_WORDS.get(kind, kind)}" for kind in _SIGNS if counts[kind])
    yield Section("Pairs", (f"{head}: {changes or 'the same pairs'}", *map(change_line, found.pairs)))
    if besides := tuple(_besides(found)):
        yield Section("Besides", besides)


_WORDS = {FORMAT: "of another format"}


def change_line(change: PairChange) -> str:
    """Return a change as one line: its sign, the edge, how the pair quantizes, and its rules."""
    edge = f"{change.moved_from} => {change.edge}" if change.moved_from else str(change.edge)
    said = change.old if change.old == change.new else f"{change.old} -> {change.new}" if change.old and change.new else change.old or change.new
    ratio = f" ({change.ratio:.4g} times)" if change.ratio not in (None, 1.0) else ""
    return f"{_SIGNS[change.kind]} {edge}  {said}{ratio}" + (f"  {change.rules}" if change.rules else "")


def _besides(found: PairDiff) -> Iterator[str]:
    for what, names in (("nodes added", found.nodes_added), ("nodes removed", found.nodes_removed)):
        if names:
            yield f"{what}: {_listed(names)}"
    if found.weights:
        changed = [f"{w.edge} by {'other dimensions' if w.largest is None else f'{w.largest:.3g}'}" for w in found.weights]
        yield f"stored weights that differ: {_listed(changed)}"
    yield from (f"{key}: {_flat(old)} -> {_flat(new)}" for key, old, new in found.metadata)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more (--format json has all)" if len(names) > _NAMES else "")


def _flat(text: str) -> str:
    return ", ".join(text.split("\n")) or "none"
