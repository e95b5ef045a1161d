"""The blocks that a network is folded to: by the paths in names, else by segments.

Exporters write the path of a module into the names of nodes, as ``/layer1/layer1.0/conv1/Conv``.
Where names have no paths, or paths that say nothing about neighbors, a block is a run of nodes that
ends at a tensor which everything passes through, as between two residual blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

#: The least and the most nodes of a block, and the blocks that are aimed at.
_LEAST_NODES = 8
_MOST_NODES = 48
_BLOCKS = 14

#: The runs of neighboring nodes that a group by names has at most, on average.
_MOST_RUNS = 3


class NodeBlock(msgspec.Struct):
    """Some nodes, by their positions, with a name for all."""

    name: str
    positions: list[int]


def fold_to_blocks(
    names: Sequence[str], titles: Sequence[str], cuts: Iterable[int]
) -> list[NodeBlock]:
    """Return the blocks of nodes in topological order, in that order.

    `names` hold the paths of the nodes; `titles` are for people. `cuts` are the positions after
    which one tensor is needed.
    """
    most = min(max(len(names) // _BLOCKS, _LEAST_NODES), _MOST_NODES)
    paths = [tuple(filter(None, name.split("/")))[:-1] for name in names]
    folder = _Folder(paths, titles, set(cuts), most)
    blocks = sorted(folder.fold(list(range(len(names))), 0), key=_first_position)
    _number_names(blocks)
    return blocks


class _Folder:
    """Splits nodes by one part of their paths after another."""

    def __init__(
        self,
        paths: Sequence[tuple[str, ...]],
        titles: Sequence[str],
        cuts: set[int],
        most: int,
    ) -> None:
        self._paths = paths
        self._titles = titles
        self._cuts = cuts
        self._most = most

    def fold(self, positions: list[int], depth: int) -> list[NodeBlock]:
        """Return the blocks of nodes whose paths have the same parts up to a depth."""
        if len(positions) <= self._most:
            return [NodeBlock(self._name(positions, depth), positions)]
        groups: dict[str, list[int]] = {}
        for position in positions:
            path = self._paths[position]
            part = path[depth] if depth < len(path) else ""
            groups.setdefault(part, []).append(position)
        if not any(groups) or _count_runs(groups.values()) > _MOST_RUNS * len(groups):
            return self._split_segments(positions)
        blocks: list[NodeBlock] = []
        for part, members in groups.items():
            if part:
                blocks += self.fold(members, depth + 1)
            else:
                blocks += self._split_segments(members)
        return self._join_small(sorted(blocks, key=_first_position), depth)

    def _split_segments(self, positions: list[int]) -> list[NodeBlock]:
        """Return runs of nodes that end at cuts where they can, none of them too long."""
        segments: list[list[int]] = [[]]
        before = positions[0]
        for position in positions:
            if position - before > _LEAST_NODES:
                segments.append([])
            segments[-1].append(position)
            if position in self._cuts:
                segments.append([])
            before = position
        runs: list[list[int]] = []
        for segment in filter(None, segments):
            is_near = bool(runs) and segment[0] - runs[-1][-1] <= _LEAST_NODES
            if is_near and len(runs[-1]) + len(segment) <= self._most:
                runs[-1] += segment
                continue
            for start in range(0, len(segment), self._most):
                runs.append(segment[start : start + self._most])
        return [NodeBlock(self._name(run, 0), run) for run in runs]

    def _join_small(self, blocks: list[NodeBlock], depth: int) -> list[NodeBlock]:
        """Join neighboring blocks of few nodes below the same path."""
        joined = [blocks[0]]
        for block in blocks[1:]:
            positions = sorted(joined[-1].positions + block.positions)
            if len(positions) <= _LEAST_NODES:
                joined[-1] = NodeBlock(self._name(positions, depth), positions)
            else:
                joined.append(block)
        return joined

    def _name(self, positions: Sequence[int], depth: int) -> str:
        """Return the path that some nodes share, else the titles of the first and the last one."""
        paths = [self._paths[position] for position in positions]
        shared = list(paths[0])
        for path in paths:
            while tuple(shared) != path[: len(shared)]:
                shared.pop()
        if len(shared) >= max(depth, 1):
            return "/".join(shared)
        first, last = self._titles[positions[0]], self._titles[positions[-1]]
        return first if first == last else f"{first} … {last}"


def _number_names(blocks: Iterable[NodeBlock]) -> None:
    """Add a number to the names of blocks that an earlier block has."""
    counts = Counter[str]()
    for block in blocks:
        counts[block.name] += 1
        if counts[block.name] > 1:
            block.name += f" ({counts[block.name]})"


def _first_position(block: NodeBlock) -> int:
    return block.positions[0]


def _count_runs(groups: Iterable[Sequence[int]]) -> int:
    """Return the number of runs of neighboring positions in all groups."""
    runs = 0
    for positions in groups:
        runs += 1 + sum(position - before > 1 for before, position in pairwise(positions))
    return runs
