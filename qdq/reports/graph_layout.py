"""The layered layout of a graph: a rank for each node, and a row among the nodes of its rank.

Ranks are those of the longest path, and rows follow from barycentres (Sugiyama, Tagawa and Toda,
Methods for visual understanding of hierarchical system structures, IEEE SMC 1981).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: The sweeps that order the rows: each one downwards and upwards.
_SWEEPS = 3

#: An edge from one node to another, by their numbers.
Link = tuple[int, int]


def rank_nodes(count: int, links: Iterable[Link]) -> list[int]:
    """Return the rank of each of so many nodes: the length of the longest path to it.

    Nodes are numbered so that links lead to larger numbers; others are ignored. A node that
    nothing leads to is right before the first one that it leads to.
    """
    successors: list[list[int]] = [[] for _ in range(count)]
    is_source = [True] * count
    for start, end in links:
        if start < end:
            successors[start].append(end)
            is_source[end] = False
    ranks = [0] * count
    for start in range(count):
        for end in successors[start]:
            ranks[end] = max(ranks[end], ranks[start] + 1)
    for start in range(count):
        if is_source[start] and successors[start]:
            ranks[start] = min(ranks[end] for end in successors[start]) - 1
    return ranks


def order_rows(ranks: Sequence[int], links: Iterable[Link]) -> list[int]:
    """Return the row of each node within its rank, so that few links cross."""
    before: list[list[int]] = [[] for _ in ranks]
    after: list[list[int]] = [[] for _ in ranks]
    for start, end in links:
        before[end].append(start)
        after[start].append(end)
    by_rank: dict[int, list[int]] = {}
    for node, rank in enumerate(ranks):
        by_rank.setdefault(rank, []).append(node)
    layers = [by_rank[rank] for rank in sorted(by_rank)]
    rows = [0] * len(ranks)
    for layer in layers:
        _number(layer, rows)
    for _ in range(_SWEEPS):
        for layer in layers:
            _sort(layer, before, rows)
        for layer in reversed(layers):
            _sort(layer, after, rows)
    return rows


def _sort(layer: list[int], neighbors: Sequence[Sequence[int]], rows: list[int]) -> None:
    """Sort the nodes of a layer by the mean row of their neighbors, and number them."""
    if len(layer) == 1:
        return
    means: dict[int, float] = {}
    for node in layer:
        near = neighbors[node]
        means[node] = sum(rows[other] for other in near) / len(near) if near else rows[node]
    layer.sort(key=lambda node: (means[node], rows[node]))
    _number(layer, rows)


def _number(layer: Sequence[int], rows: list[int]) -> None:
    for row, node in enumerate(layer):
        rows[node] = row
