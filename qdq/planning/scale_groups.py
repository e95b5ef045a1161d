"""Ties: which tensors belong together because something joins them, one way or another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class DisjointSets:
    """Disjoint sets of tensors, each with the names of the rules that joined them.

    Union by size with path halving (Tarjan and van Leeuwen, Worst-case analysis of set union
    algorithms, 1984).
    """

    def __init__(self) -> None:
        self._above: dict[str, str] = {}
        self._size: dict[str, int] = {}
        self._names: dict[str, set[str]] = {}

    def tie(self, tensors: Iterable[str], name: str) -> None:
        """Join tensors into one set, because of the rule `name`."""
        roots = list(dict.fromkeys(map(self._root, tensors)))
        top = max(roots, key=self._size.__getitem__)
        self._names[top].add(name)
        for root in roots:
            if root != top:
                self._above[root] = top
                self._size[top] += self._size.pop(root)
                self._names[top] |= self._names.pop(root)

    def groups(self) -> Iterator[tuple[set[str], set[str]]]:
        """Yield each set of tensors with the rules that joined it."""
        members: dict[str, set[str]] = {}
        for tensor in self._above:
            members.setdefault(self._root(tensor), set()).add(tensor)
        for root, tensors in members.items():
            yield tensors, self._names[root]

    def _root(self, tensor: str) -> str:
        above = self._above
        if tensor not in above:
            above[tensor], self._size[tensor], self._names[tensor] = tensor, 1, set()
        while above[tensor] != tensor:
            above[tensor] = above[above[tensor]]
            tensor = above[tensor]
        return tensor
