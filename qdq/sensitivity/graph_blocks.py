"""Blocks of a network: its parts between tensors that everything passes through.

Such a tensor is the only one that is computed before a position of the graph and read after it,
as between two residual blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from qdq.graph.index import GraphIndex


def find_blocks(index: GraphIndex, labels: Iterable[str]) -> Iterator[list[str]]:
    """Yield the labels of each block in order; those of nodes in bodies are blocks of their own.

    Labels are those of `qualified_name`.
    """
    cuts = find_cuts(index)
    blocks: dict[int, list[str]] = {}
    in_bodies: list[str] = []
    for label in labels:
        node = index.by_label.get(label)
        if node is None:
            in_bodies.append(label)
            continue
        block_number = bisect_left(cuts, node.position)
        blocks.setdefault(block_number, []).append(label)
    for number in sorted(blocks):
        yield blocks[number]
    for label in in_bodies:
        yield [label]


def find_cuts(index: GraphIndex) -> list[int]:
    """Return the positions of nodes after which a single computed tensor is still needed."""
    last_reads: dict[str, int] = {}
    for node in index.nodes:
        for tensor in node.read_names:
            last_reads[tensor] = node.position
    for tensor in index.outputs:
        last_reads[tensor] = len(index.nodes)
    needed = set(index.inputs).intersection(last_reads)
    cuts: list[int] = []
    for node in index.nodes:
        for tensor in node.outputs:
            if tensor in last_reads and not index.is_constant(tensor):
                needed.add(tensor)
        needed = {tensor for tensor in needed if last_reads[tensor] > node.position}
        if len(needed) == 1 and not index.is_constant(node.outputs[0]):
            cuts.append(node.position)
    return cuts
