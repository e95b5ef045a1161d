"""Segments of a graph: consecutive parts that are run one after another.

A run that changes nothing before a segment starts there, with the tensors that an earlier run left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from qdq.graph.bodies import names_captured_by
from qdq.graph.index import GraphIndex, Node
from qdq.graph.shape_inference import known_sizes
from qdq.graph.source import copy_fields
from qdq.graph.subgraph import extract_subgraph


class Segment(msgspec.Struct, frozen=True):
    """Nodes at consecutive positions, without those that compute constants."""

    nodes: tuple[Node, ...]
    #: The inputs of the graph, and the tensors of earlier segments, that the nodes read.
    inputs: tuple[str, ...]
    #: The tensors that later segments read or that are outputs.
    outputs: tuple[str, ...]


def split_graph(
    index: GraphIndex, outputs: Iterable[str], marked: Collection[int], count: int
) -> tuple[Segment, ...]:
    """Return the part of a graph that computes some tensors as at most `count` segments.

    Each has about as many nodes at `marked` positions. Between two of them there are few tensors,
    all of a known type.
    """
    splitter = _Splitter(index, outputs)
    return tuple(splitter.split(marked, count))


class _Splitter:
    """The cuts of one graph."""

    def __init__(self, index: GraphIndex, outputs: Iterable[str]) -> None:
        self._index = index
        self._outputs = dict.fromkeys(outputs)
        self._nodes = list(_list_needed_nodes(index, self._outputs))
        self._last_reads: dict[str, int] = {}
        for i, node in enumerate(self._nodes):
            for tensor in node.read_names:
                self._last_reads[tensor] = i

    def split(self, marked: Collection[int], count: int) -> Iterator[Segment]:
        """Yield the segments."""
        start = 0
        for cut in self._choose_cuts(marked, count):
            yield self._make_segment(start, cut)
            start = cut
        yield self._make_segment(start, len(self._nodes))

    def _choose_cuts(self, marked: Collection[int], count: int) -> Iterator[int]:
        """Yield the places between nodes with the fewest tensors, each near its share of marks."""
        total = sum(node.position in marked for node in self._nodes)
        windows: dict[int, list[tuple[int, int]]] = {}
        passed = 0
        for i, live_count in self._count_live():
            passed += self._nodes[i - 1].position in marked
            window = int(passed * count / total + 0.5) if total else 0
            if live_count is not None and 0 < window < count and 0 < passed < total:
                windows.setdefault(window, []).append((live_count, i))
        for window in sorted(windows):
            yield min(windows[window])[1]

    def _count_live(self) -> Iterator[tuple[int, int | None]]:
        """Yield each place with the number of tensors that cross it, None where one has no type."""
        live: set[str] = set()
        for i, node in enumerate(self._nodes):
            live.update(tensor for tensor in node.outputs if self._last_reads.get(tensor, -1) > i)
            live = {tensor for tensor in live if self._last_reads[tensor] > i}
            yield i + 1, len(live) if all(map(self._has_type, live)) else None

    def _has_type(self, tensor: str) -> bool:
        return self._index.elem_type(tensor) != TensorProto.UNDEFINED

    def _make_segment(self, start: int, stop: int) -> Segment:
        nodes = self._nodes[start:stop]
        computed: dict[str, None] = {}
        for node in nodes:
            computed.update(dict.fromkeys(filter(None, node.outputs)))
        read: dict[str, None] = {}
        for node in nodes:
            read.update(dict.fromkeys(node.read_names))
        inputs = [name for name in read if name not in computed and self._is_fed(name)]
        outputs: list[str] = []
        for name in computed:
            if self._last_reads.get(name, -1) >= stop or name in self._outputs:
                outputs.append(name)
        return Segment(tuple(nodes), tuple(inputs), tuple(outputs))

    def _is_fed(self, tensor: str) -> bool:
        index = self._index
        if index.is_constant(tensor):
            return False
        return tensor in index.inputs or tensor in index.producers


def _list_needed_nodes(index: GraphIndex, outputs: Iterable[str]) -> list[Node]:
    """Return the nodes that compute some tensors from the inputs, without constants."""
    needed = set(outputs)
    nodes: list[Node] = []
    for node in reversed(index.nodes):
        computed = [name for name in node.outputs if name and not index.is_constant(name)]
        if not needed.isdisjoint(computed):
            nodes.append(node)
            needed.update(node.read_names)
    return nodes[::-1]


def extract_segment(
    index: GraphIndex,
    segment: Segment,
    nodes: Iterable[NodeProto],
    outputs: Sequence[str],
    shared: Mapping[str, TensorProto],
) -> ModelProto:
    """Return a model of a segment, of other `nodes` that compute its tensors.

    It has the constants that they read; those of the names in `shared` are declared as stated
    there.
    """
    whole = index.source.model
    shell = ModelProto()
    copy_fields(whole, shell, excluded="graph")
    graph = shell.graph
    graph.name = whole.graph.name
    graph.value_info.extend(whole.graph.value_info)
    graph.sparse_initializer.extend(whole.graph.sparse_initializer)
    _declare_inputs(index, segment, graph)
    replaced = list(nodes)
    graph.node.extend(_list_needed_constants(index, replaced))
    graph.node.extend(replaced)
    declared = {value.name: value for value in whole.graph.output}
    graph.output.extend(declared[name] for name in outputs if name in declared)
    part = extract_subgraph(shell, outputs)
    read = _list_reads(part.graph.node) | set(outputs)
    stored = {tensor.name: tensor for tensor in whole.graph.initializer} | dict(shared)
    part.graph.initializer.extend(stored[name] for name in stored if name in read)
    return part


def _declare_inputs(index: GraphIndex, segment: Segment, graph: GraphProto) -> None:
    declared = {value.name: value for value in index.source.model.graph.input}
    for name in segment.inputs:
        if name in declared:
            graph.input.append(declared[name])
        else:
            sizes = known_sizes(index.shape(name))
            value = helper.make_tensor_value_info(name, index.elem_type(name), sizes)
            graph.input.append(value)


def _list_needed_constants(index: GraphIndex, nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return the nodes of the model that compute the constants which some nodes read."""
    needed = _list_reads(nodes)
    constants: list[NodeProto] = []
    for node in reversed(index.nodes):
        computed = needed.intersection(node.outputs)
        if any(name and index.is_constant(name) for name in computed):
            constants.append(node.proto)
            needed.update(node.read_names)
    return constants[::-1]


def _list_reads(nodes: Iterable[NodeProto]) -> set[str]:
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
        read |= names_captured_by(node)
    return read
