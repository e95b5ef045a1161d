"""Groups of pairs that leave an engine's INT8 together: the units that can be released.

TensorRT runs a layer in one type as a whole. To release a layer is to remove the pairs of all its
inputs, and those that need them: of the residual that is added to its result, or of the pools
after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from qdq.errors import UsageError
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.planning.decisions import Placement, Plan, ScaleGroup
from qdq.planning.pair_dependencies import find_dependents
from qdq.rules.node_selection import glob_names
from qdq.sensitivity.graph_blocks import find_blocks

#: A layer alone; a tensor or scale group with all its readers; a part between two tensors that
#: everything passes through.
LAYER, TENSOR, BLOCK = "layer", "tensor", "block"
GROUPINGS = (LAYER, TENSOR, BLOCK)


class LayerGroup(msgspec.Struct, frozen=True):
    """Nodes that are left in float together, and the pairs that go with them."""

    #: The label of the layer, the tensor, or the first and the last layer of a block.
    name: str
    #: The labels of the nodes to leave in float. Rules name nodes by them, and so mean all nodes
    #: of that label or name, in bodies too.
    owners: tuple[str, ...]
    #: The labels of all nodes that lose pairs then.
    nodes: tuple[str, ...]
    placements: tuple[Placement, ...]


def find_layer_groups(index: GraphIndex, plan: Plan, by: str = LAYER) -> tuple[LayerGroup, ...]:
    """Return the groups of a plan, in its order; raises UsageError for an unknown grouping.

    `by` is "layer", "tensor" or "block". A pair may be in several groups.
    """
    finder = _GroupFinder(index, plan)
    if by == LAYER:
        groups = finder.by_layer()
    elif by == TENSOR:
        groups = finder.by_tensor()
    elif by == BLOCK:
        groups = finder.by_block()
    else:
        raise UsageError(f"unknown groups {by!r}. Pass layer, tensor or block.")
    return _drop_repeated(groups)


def _drop_repeated(groups: Iterable[LayerGroup]) -> tuple[LayerGroup, ...]:
    """Return the groups without those whose pairs an earlier one has."""
    by_placements: dict[tuple[Placement, ...], LayerGroup] = {}
    for group in groups:
        by_placements.setdefault(group.placements, group)
    return tuple(by_placements.values())


class _GroupFinder:
    """The groups of one plan."""

    def __init__(self, index: GraphIndex, plan: Plan) -> None:
        self._index = index
        self._plan = plan
        self._dependents = find_dependents(index, plan)
        self._by_node: dict[str, list[Edge]] = {}
        self._by_tensor: dict[str, list[Edge]] = {}
        #: The edges of all nodes that a rule means by a name.
        self._by_name: dict[str, list[Edge]] = {}
        for placement in plan.placements:
            edge = placement.edge
            label = qualified_name(edge.graph, edge.node)
            self._by_node.setdefault(label, []).append(edge)
            for name in glob_names(index.scope(edge), index.node(edge)):
                self._by_name.setdefault(name, []).append(edge)
            if placement.quantizer.calibrated:
                self._by_tensor.setdefault(edge.qualified_tensor, []).append(edge)

    def by_layer(self) -> Iterator[LayerGroup]:
        """Yield one group per node that has pairs."""
        for label in self._by_node:
            yield self._make_group(label, [label])

    def by_tensor(self) -> Iterator[LayerGroup]:
        """Yield one group per tensor or scale group: all nodes that read it."""
        names = _map_to_scale_groups(self._plan.scale_groups)
        by_name: dict[str, list[str]] = {}
        for tensor, edges in self._by_tensor.items():
            labels = [qualified_name(edge.graph, edge.node) for edge in edges]
            by_name.setdefault(names.get(tensor, tensor), []).extend(labels)
        for name, labels in by_name.items():
            yield self._make_group(name, labels)

    def by_block(self) -> Iterator[LayerGroup]:
        """Yield one group per part of the main graph between tensors that everything passes."""
        for labels in find_blocks(self._index, list(self._by_node)):
            name = labels[0] if len(labels) == 1 else f"{labels[0]} .. {labels[-1]}"
            yield self._make_group(name, labels)

    def _make_group(self, name: str, owners: Iterable[str]) -> LayerGroup:
        owners = tuple(dict.fromkeys(owners))
        edges: list[Edge] = []
        for owner in owners:
            edges += self._by_name[owner]
        removed = self._close(edges)
        labels: dict[str, None] = {}
        placements: list[Placement] = []
        for placement in self._plan.placements:
            if placement.edge in removed:
                placements.append(placement)
                labels[qualified_name(placement.edge.graph, placement.edge.node)] = None
        return LayerGroup(name, owners, tuple(labels), tuple(placements))

    def _close(self, edges: Iterable[Edge]) -> set[Edge]:
        """Return the edges, and those that cannot have pairs without them."""
        removed: set[Edge] = set()
        pending = list(edges)
        while pending:
            edge = pending.pop()
            if edge not in removed:
                removed.add(edge)
                pending.extend(self._dependents.get(edge, ()))
        return removed


def _map_to_scale_groups(groups: Iterable[ScaleGroup]) -> Mapping[str, str]:
    """Return the name of the scale group of each tensor that is in one."""
    names: dict[str, str] = {}
    for group in groups:
        for tensor in group.tensors:
            names[tensor] = " + ".join(group.tensors)
    return names
