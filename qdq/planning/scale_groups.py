"""Scale groups: tensors that share-scale rules or aliases connect, directly or in steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from qdq.graph.aliases import find_origin
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.operators import ARITHMETIC
from qdq.planning.decisions import ALIAS, ScaleGroup
from qdq.rules.rule import RATIO_AT_MOST, RuleSet


def find_scale_groups(
    index: GraphIndex,
    rules: RuleSet,
    shared: dict[str, tuple[Edge, ...]],
    quantized: Iterable[Edge],
) -> tuple[ScaleGroup, ...]:
    """Return the groups of quantized activations that matched nodes or aliases connect.

    `shared` holds the matched edges of each share-scale rule. The edges of one node are connected
    to each other, and to the node's outputs unless it computes those from several inputs. Tensors
    that are not quantized connect too, so that a group reaches through any number of nodes.
    Aliases of one tensor are always connected: the compiler quantizes that tensor.
    """
    sets = DisjointSets()
    for rule_name, edges in shared.items():
        for label, node_edges in groupby(edges, key=lambda edge: edge.node):
            tensors = [edge.tensor for edge in node_edges]
            tensors += _connected_outputs(index, label)
            sets.tie((find_origin(index, tensor) for tensor in tensors), rule_name)
    quantized_names = _group_by_origin(index, quantized)
    for origin, names in quantized_names.items():
        if len(names) > 1:
            sets.tie([origin], ALIAS)
    ratios = _ratios(rules, shared)
    groups: list[ScaleGroup] = []
    for origins, names in sets.groups():
        group = _make_group(origins, names, quantized_names, ratios)
        if len(group.tensors) > 1:
            groups.append(group)
    return tuple(sorted(groups))


def _group_by_origin(index: GraphIndex, edges: Iterable[Edge]) -> dict[str, set[str]]:
    """Return the qualified names that edges read a tensor under, by the tensor's origin."""
    names: dict[str, set[str]] = {}
    for edge in edges:
        origin = find_origin(index, edge.tensor)
        names.setdefault(origin, set()).add(edge.qualified_tensor)
    return names


def _make_group(
    origins: set[str],
    reasons: set[str],
    quantized_names: dict[str, set[str]],
    ratios: dict[str, float],
) -> ScaleGroup:
    tensors: set[str] = set()
    for origin in origins:
        tensors |= quantized_names.get(origin, set())
    limits = (ratios[name] for name in reasons if name in ratios)
    return ScaleGroup(tuple(sorted(tensors)), tuple(sorted(reasons)), min(limits, default=None))


def _connected_outputs(index: GraphIndex, label: str) -> list[str]:
    """Return the outputs of a node that have the values of its inputs."""
    node = index.by_label[label]
    if node.op in ARITHMETIC:
        return []
    tensors: list[str] = []
    for output in node.outputs:
        if output:
            tensors.append(output)
    return tensors


def _ratios(rules: RuleSet, names: Iterable[str]) -> dict[str, float]:
    """Return the `ratio-at-most` of each named rule that states one."""
    ratios: dict[str, float] = {}
    for name in names:
        rule = rules.rule(name)
        if rule is None:
            continue
        numbers = dict(rule.given)
        ratio = numbers.get(RATIO_AT_MOST)
        if ratio:
            ratios[name] = float(ratio)
    return ratios


class DisjointSets:
    """Disjoint sets of tensors, each with the names of the rules that joined them.

    Union by size with path halving (Tarjan and van Leeuwen, Worst-case analysis of set union
    algorithms, 1984).
    """

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._names: dict[str, set[str]] = {}

    def tie(self, tensors: Iterable[str], name: str) -> None:
        """Join tensors into one set, because of the rule `name`."""
        roots = dict.fromkeys(self._find_root(tensor) for tensor in tensors)
        top = max(roots, key=self._sizes.__getitem__)
        self._names[top].add(name)
        for root in roots:
            if root != top:
                self._join_roots(top, root)

    def _join_roots(self, top: str, root: str) -> None:
        self._parents[root] = top
        size = self._sizes.pop(root)
        names = self._names.pop(root)
        self._sizes[top] += size
        self._names[top] |= names

    def groups(self) -> Iterator[tuple[set[str], set[str]]]:
        """Yield each set of tensors with the rules that joined it."""
        members: dict[str, set[str]] = {}
        for tensor in self._parents:
            root = self._find_root(tensor)
            root_members = members.setdefault(root, set())
            root_members.add(tensor)
        for root, tensors in members.items():
            yield tensors, self._names[root]

    def _find_root(self, tensor: str) -> str:
        parents = self._parents
        if tensor not in parents:
            parents[tensor] = tensor
            self._sizes[tensor] = 1
            self._names[tensor] = set()
        while parents[tensor] != tensor:
            parent = parents[tensor]
            parents[tensor] = parents[parent]
            tensor = parents[tensor]
        return tensor
