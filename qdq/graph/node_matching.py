"""Which node of one model is which of another: two exports of a network, or a model and what a tool made of it.

A node is known by what leads to it and by what it leads to, names left out, so that an export that renumbers
its nodes and tensors is no other model. Only where that differs do names decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping

import msgspec
import numpy as np
import onnx
from onnx import TensorProto

from qdq.graph.bodies import all_nodes, qualified_name
from qdq.graph.index import GraphIndex, Node

#: The path of a graph and the label of a node in it.
NodePlace = tuple[str, str]

#: Stored integers up to this many bytes are told apart by their values: axes, shapes and the like.
_SMALL = 256
_WHOLE = (TensorProto.INT64, TensorProto.INT32)


def match_nodes(old: GraphIndex, new: GraphIndex) -> dict[NodePlace, NodePlace]:
    """Return the place in the older model of every node of the newer one that is in both, those in bodies too."""
    found: dict[NodePlace, NodePlace] = {}
    for was, now in _matched(old, new):
        found[new.path, now.label] = (old.path, was.label)
        bodies = {name for name, _ in was.bodies}
        for name, _ in now.bodies:
            if name in bodies:
                found |= match_nodes(_body(old, was, name), _body(new, now, name))
    return found


def _body(index: GraphIndex, node: Node, name: str) -> GraphIndex:
    return index.scopes[qualified_name(index.path, f"{node.label}.{name}")]


def _matched(old: GraphIndex, new: GraphIndex) -> list[tuple[Node, Node]]:
    """Return the nodes of two graphs that are the same, the surest first."""
    looks = {
        id(node): look
        for index in (old, new)
        for node, look in zip(index.nodes, _looks(index), strict=True)
    }
    homes = {id(node): index for index in (old, new) for node in index.nodes}
    left = _Left(old.nodes, new.nodes)
    left.take(lambda node: looks[id(node)])
    left.take(lambda node: looks[id(node)].before)
    left.take(lambda node: looks[id(node)].behind)
    left.take(lambda node: _weights(homes[id(node)], node, lambda tensor: hash(tensor.raw_data)))
    left.take(lambda node: _weights(homes[id(node)], node, lambda tensor: tuple(tensor.dims)))
    left.follow(old, new)
    left.take(lambda node: node.proto.name and (looks[id(node)].own, node.proto.name))
    left.take(lambda node: node.outputs and (looks[id(node)].own, node.outputs[0]))
    left.take(lambda node: node.proto.name and (node.op, node.proto.name))
    left.take(lambda node: node.outputs and (node.op, node.outputs[0]))
    return left.taken


class _Look(msgspec.Struct, frozen=True):
    """What a node is, what leads to it, and what it leads to, each as a hash that no name is in."""

    own: int
    before: int
    behind: int


class _Left:
    """The nodes of two graphs that have not been matched yet."""

    def __init__(self, old: Iterable[Node], new: Iterable[Node]) -> None:
        self.old, self.new = list(old), list(new)
        self.taken: list[tuple[Node, Node]] = []

    def take(self, key: Callable[[Node], Hashable]) -> None:
        """Match the nodes of equal keys that are as many in both graphs, those of equal names first; nodes of a false key stay."""
        had, taken = _by_key(self.old, key), []
        for value, now in _by_key(self.new, key).items():
            taken += _aligned(had.get(value, []), now)
        self._leave_out(taken)

    def follow(self, old: GraphIndex, new: GraphIndex) -> None:
        """Match in the order of nodes what reads, at the same slot, what a node gives that is matched: the one such reader of its operator."""
        known, free, pairs = (
            {id(now): was for was, now in self.taken},
            {id(node) for node in self.old},
            [],
        )
        for now in self.new:
            reads = (
                (slot, _counterpart(new.producers.get(name), name, known))
                for slot, name in enumerate(now.inputs)
            )
            there = (
                [
                    n
                    for n, at in old.consumers.get(name, ())
                    if (at, n.op) == (slot, now.op) and id(n) in free
                ]
                for slot, name in reads
                if name
            )
            if (was := next((found[0] for found in there if len(found) == 1), None)) is not None:
                pairs.append((was, now))
                known[id(now)] = was
                free.remove(id(was))
        self._leave_out(pairs)

    def _leave_out(self, pairs: list[tuple[Node, Node]]) -> None:
        gone = {id(node) for pair in pairs for node in pair}
        self.old, self.new = (
            [node for node in nodes if id(node) not in gone] for nodes in (self.old, self.new)
        )
        self.taken += pairs


def _counterpart(maker: Node | None, name: str, known: Mapping[int, Node]) -> str:
    """Return what an output of a matched node is called in the older graph, "" where nothing is known of it."""
    was = known.get(id(maker))
    return (
        was.outputs[maker.outputs.index(name)]
        if was and maker and len(was.outputs) == len(maker.outputs)
        else ""
    )


def _by_key(
    nodes: Iterable[Node], key: Callable[[Node], Hashable]
) -> Mapping[Hashable, list[Node]]:
    groups: defaultdict[Hashable, list[Node]] = defaultdict(list)
    for node in nodes:
        if value := key(node):
            groups[value].append(node)
    return groups


def _aligned(old: list[Node], new: list[Node]) -> list[tuple[Node, Node]]:
    """Match nodes that cannot be told apart: by name, and if as many are left, in order."""
    named = {node.proto.name: node for node in old if node.proto.name}
    pairs = [(named.pop(node.proto.name), node) for node in new if node.proto.name in named]
    done = {id(node) for pair in pairs for node in pair}
    others = [[node for node in nodes if id(node) not in done] for nodes in (old, new)]
    return pairs + (list(zip(*others, strict=True)) if len(others[0]) == len(others[1]) else [])


def _looks(index: GraphIndex) -> list[_Look]:
    own = [
        hash((node.op, tuple(sorted(_attribute(a) for a in node.proto.attribute))))
        for node in index.nodes
    ]
    before, behind = _before(index, own), _behind(index, own)
    kinds = [
        hash((one, *(_stored(index, name) for name in node.inputs)))
        for one, node in zip(own, index.nodes, strict=True)
    ]
    return [_Look(*look) for look in zip(kinds, before, behind, strict=True)]


def _attribute(attribute: onnx.AttributeProto) -> tuple[str, Hashable]:
    if attribute.HasField("t"):
        return attribute.name, repr(_tensor(attribute.t))
    bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    if bodies:
        return attribute.name, " ".join(
            node.op_type for body in bodies for _, node in all_nodes(body)
        )
    return attribute.name, attribute.SerializeToString().hex()


def _tensor(tensor: onnx.TensorProto) -> tuple[Hashable, ...]:
    """Return what tells stored tensors apart: type and dimensions, of few integers the values; weights may be trained on."""
    if tensor.data_type not in _WHOLE or tensor.ByteSize() > _SMALL:
        return tensor.data_type, tuple(tensor.dims)
    listed = (
        np.array(tensor.int64_data, "<i8")
        if tensor.data_type == TensorProto.INT64
        else np.array(tensor.int32_data, "<i4")
    )
    return tensor.data_type, tuple(tensor.dims), tensor.raw_data or listed.tobytes()


def _stored(index: GraphIndex, name: str) -> Hashable:
    tensor = index.initializers.get(name)
    if (
        tensor is None
        and (maker := index.producers.get(name)) is not None
        and maker.op == "Constant"
    ):
        tensor = maker.attribute("value")
    return None if tensor is None else _tensor(tensor)


def _weights(
    index: GraphIndex, node: Node, look: Callable[[onnx.TensorProto], Hashable]
) -> Hashable:
    """Return the operator of a node and how its weights look, of those large enough to be no one else's; None where it has none."""
    stored = [
        tensor for name in node.inputs if (tensor := index.initializers.get(name)) is not None
    ]
    looks = tuple(look(tensor) for tensor in stored if len(tensor.raw_data) > _SMALL)
    return (node.op, looks) if looks else None


def _before(index: GraphIndex, own: list[int]) -> list[int]:
    """Return for each node a hash of itself and of all that it is computed from."""
    known: dict[str, Hashable] = {
        name: ("input", index.elem_type(name), index.rank(name)) for name in index.inputs
    }
    hashes = []
    for node, itself in zip(index.nodes, own, strict=True):
        read = [_stored(index, name) or known.get(name, name and "outside") for name in node.inputs]
        hashes.append(hash((itself, *read)))
        known.update({name: (hashes[-1], i) for i, name in enumerate(node.outputs) if name})
    return hashes


def _behind(index: GraphIndex, own: list[int]) -> list[int]:
    """Return for each node a hash of itself and of all that is computed from it."""
    given: defaultdict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(index.outputs):
        given[name].append(hash(("output", i)))
    hashes = [0] * len(own)
    for node in reversed(index.nodes):
        leads = tuple(tuple(sorted(given[name])) for name in node.outputs)
        hashes[node.position] = hash((own[node.position], leads))
        for slot, name in enumerate(node.inputs):
            given[name].append(hash((hashes[node.position], slot)))
    return hashes
