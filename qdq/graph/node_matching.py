"""Correspondence between the nodes of two models.

The models are two exports of a network, or a model and its quantized form.
A node is recognised by all that it is computed from and all that is computed from it. Names do not
count, so that an export which renumbers its nodes and tensors is the same model. Names decide only
where these differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping

from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.graph.node_signatures import large_weights, sign_nodes

#: The path of a graph and the label of a node in it.
NodePlace = tuple[str, str]

#: An older node and the newer one that it corresponds to.
_NodePair = tuple[Node, Node]
_Groups = Mapping[Hashable, list[Node]]


def match_nodes(old: GraphIndex, new: GraphIndex) -> dict[NodePlace, NodePlace]:
    """Return the place in the older model of every node of the newer one that is in both models.

    Nodes in bodies are matched too.
    """
    places: dict[NodePlace, NodePlace] = {}
    for old_node, new_node in _match_graph(old, new):
        places[new.path, new_node.label] = (old.path, old_node.label)
        old_bodies = {name for name, _ in old_node.bodies}
        for name, _ in new_node.bodies:
            if name in old_bodies:
                old_body = _find_body(old, old_node, name)
                places |= match_nodes(old_body, _find_body(new, new_node, name))
    return places


def _find_body(index: GraphIndex, node: Node, name: str) -> GraphIndex:
    path = qualified_name(index.path, f"{node.label}.{name}")
    return index.scopes[path]


def _match_graph(old: GraphIndex, new: GraphIndex) -> list[_NodePair]:
    """Return the nodes of two graphs that correspond, the surest first."""
    keys = _NodeKeys(old, new)
    matching = _Matching(old, new)
    matching.match_equal(keys.signature)
    matching.match_equal(keys.ancestors)
    matching.match_equal(keys.descendants)
    matching.match_equal(keys.weight_values)
    matching.match_equal(keys.weight_shapes)
    matching.match_readers()
    matching.match_equal(keys.signed_name)
    matching.match_equal(keys.signed_output)
    matching.match_equal(keys.name)
    matching.match_equal(keys.output)
    return matching.pairs


class _NodeKeys:
    """Keys that corresponding nodes of two graphs share; a false key excludes a node."""

    def __init__(self, old: GraphIndex, new: GraphIndex) -> None:
        self._signatures = {}
        self._indexes = {}
        for index in (old, new):
            for node, signature in zip(index.nodes, sign_nodes(index), strict=True):
                self._signatures[id(node)] = signature
                self._indexes[id(node)] = index

    def signature(self, node: Node) -> Hashable:
        return self._signatures[id(node)]

    def ancestors(self, node: Node) -> Hashable:
        return self._signatures[id(node)].ancestors

    def descendants(self, node: Node) -> Hashable:
        return self._signatures[id(node)].descendants

    def weight_values(self, node: Node) -> Hashable:
        weights = large_weights(self._indexes[id(node)], node)
        if not weights:
            return None
        hashes = tuple(hash(weight.raw_data) for weight in weights)
        return node.op, hashes

    def weight_shapes(self, node: Node) -> Hashable:
        weights = large_weights(self._indexes[id(node)], node)
        if not weights:
            return None
        shapes = tuple(tuple(weight.dims) for weight in weights)
        return node.op, shapes

    def signed_name(self, node: Node) -> Hashable:
        name = node.proto.name
        if not name:
            return None
        signature = self._signatures[id(node)]
        return signature.node, name

    def signed_output(self, node: Node) -> Hashable:
        if not node.outputs:
            return None
        signature = self._signatures[id(node)]
        return signature.node, node.outputs[0]

    def name(self, node: Node) -> Hashable:
        return (node.op, node.proto.name) if node.proto.name else None

    def output(self, node: Node) -> Hashable:
        return (node.op, node.outputs[0]) if node.outputs else None


class _Matching:
    """The nodes of two graphs: pairs of those that correspond, and the unmatched rest."""

    def __init__(self, old: GraphIndex, new: GraphIndex) -> None:
        self.pairs: list[_NodePair] = []
        self._old = old
        self._new = new
        self._old_nodes = list(old.nodes)
        self._new_nodes = list(new.nodes)

    def match_equal(self, key: Callable[[Node], Hashable]) -> None:
        """Match unmatched nodes of equal keys.

        Those of equal names are matched, and the others where both graphs have as many.
        """
        old_groups = _group_by_key(self._old_nodes, key)
        pairs: list[_NodePair] = []
        for value, new_nodes in _group_by_key(self._new_nodes, key).items():
            pairs += _align_nodes(old_groups.get(value, []), new_nodes)
        self._add(pairs)

    def match_readers(self) -> None:
        """Match unmatched nodes that read the same output of matched nodes at the same slot.

        A node is matched if it is the only such reader of its operator.
        """
        old_by_new = {id(new_node): old_node for old_node, new_node in self.pairs}
        unmatched = {id(node) for node in self._old_nodes}
        pairs: list[_NodePair] = []
        for new_node in self._new_nodes:
            old_node = self._find_old_reader(new_node, old_by_new, unmatched)
            if old_node is not None:
                pairs.append((old_node, new_node))
                old_by_new[id(new_node)] = old_node
                unmatched.remove(id(old_node))
        self._add(pairs)

    def _find_old_reader(
        self, new_node: Node, old_by_new: Mapping[int, Node], unmatched: set[int]
    ) -> Node | None:
        for slot, name in enumerate(new_node.inputs):
            producer = self._new.producers.get(name)
            old_name = _find_old_name(producer, name, old_by_new)
            if not old_name:
                continue
            readers = []
            for reader, reader_slot in self._old.consumers.get(old_name, ()):
                is_same_use = reader_slot == slot and reader.op == new_node.op
                if is_same_use and id(reader) in unmatched:
                    readers.append(reader)
            if len(readers) == 1:
                return readers[0]
        return None

    def _add(self, pairs: list[_NodePair]) -> None:
        matched = _node_ids(pairs)
        self._old_nodes = _exclude(self._old_nodes, matched)
        self._new_nodes = _exclude(self._new_nodes, matched)
        self.pairs += pairs


def _find_old_name(producer: Node | None, name: str, old_by_new: Mapping[int, Node]) -> str:
    """Return the older graph's name of an output of a matched node, "" where that is not known."""
    old_node = old_by_new.get(id(producer))
    if producer is None or old_node is None:
        return ""
    if len(old_node.outputs) != len(producer.outputs):
        return ""
    slot = producer.outputs.index(name)
    return str(old_node.outputs[slot])


def _group_by_key(nodes: Iterable[Node], key: Callable[[Node], Hashable]) -> _Groups:
    groups: defaultdict[Hashable, list[Node]] = defaultdict(list)
    for node in nodes:
        value = key(node)
        if value:
            groups[value].append(node)
    return groups


def _align_nodes(old_nodes: list[Node], new_nodes: list[Node]) -> list[_NodePair]:
    """Match nodes that are otherwise alike: by name, then in order if the counts are equal."""
    by_name = {node.proto.name: node for node in old_nodes if node.proto.name}
    pairs: list[_NodePair] = []
    for node in new_nodes:
        if node.proto.name in by_name:
            pairs.append((by_name.pop(node.proto.name), node))
    matched = _node_ids(pairs)
    old_rest = _exclude(old_nodes, matched)
    new_rest = _exclude(new_nodes, matched)
    if len(old_rest) == len(new_rest):
        pairs.extend(zip(old_rest, new_rest, strict=True))
    return pairs


def _exclude(nodes: list[Node], ids: set[int]) -> list[Node]:
    return [node for node in nodes if id(node) not in ids]


def _node_ids(pairs: Iterable[_NodePair]) -> set[int]:
    ids: set[int] = set()
    for old_node, new_node in pairs:
        ids.update((id(old_node), id(new_node)))
    return ids
