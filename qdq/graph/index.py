"""Index of one model: edges, producers, consumers, constants, types and shapes.

The main graph and every body in it are a separate scope with an index each. A body sees the
constants and types of the graphs around it; other tensors from there are inputs to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec
import onnx
from onnx import GraphProto, NodeProto, TensorProto

from qdq.arrays import Array
from qdq.graph.bodies import (
    captured_names,
    node_bodies,
    node_labels,
    qualified_name,
)
from qdq.graph.constant_folding import is_foldable
from qdq.graph.constant_values import ConstantValues, find_taken_branch
from qdq.graph.liveness import find_live_nodes
from qdq.graph.plugins import own_opset
from qdq.graph.shape_inference import (
    LARGEST_FOLDED_BYTES,
    Dims,
    TensorType,
    declared_type,
    infer_types,
)
from qdq.graph.source import Source
from qdq.graph.tensor_sizes import count_value_bytes

#: A node that reads a tensor, and the input slot that it reads it at.
Reader = tuple["Node", int]

_FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


class Edge(msgspec.Struct, frozen=True, order=True):
    """One input slot of one node: the unit of every decision."""

    #: "" for the main graph, else the path of the body that contains it.
    graph: str
    #: Label of the consuming node.
    node: str
    #: Position of the input among the node's inputs.
    slot: int
    #: The tensor that the input reads.
    tensor: str

    def __str__(self) -> str:
        node = qualified_name(self.graph, self.node)
        return f"{self.tensor} -> {node}[{self.slot}]"

    @property
    def qualified_tensor(self) -> str:
        """The tensor's name after the path of the body that reads it: the key of its scale."""
        return qualified_name(self.graph, self.tensor)


class Node:
    """One node of a graph, read-only."""

    __slots__ = ("captured", "inputs", "label", "op", "outputs", "position", "proto")

    def __init__(self, position: int, label: str, proto: NodeProto) -> None:
        self.position = position
        #: The node's name, or ``#17`` by its position where the name is empty or taken.
        self.label = label
        self.proto = proto
        #: The operator, with its domain where that is not ONNX's, as in ``com.microsoft.Gelu``.
        self.op = proto.op_type
        if proto.domain not in ("", "ai.onnx"):
            self.op = f"{proto.domain}.{proto.op_type}"
        self.inputs = tuple(proto.input)
        self.outputs = tuple(proto.output)
        #: The tensors that its bodies read from the graphs around them, body by body.
        self.captured = _list_captured(proto)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, or `default` where the node does not have it."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    @property
    def bodies(self) -> tuple[tuple[str, GraphProto], ...]:
        """The graphs that the node carries as attributes, by attribute name."""
        return node_bodies(self.proto)

    @property
    def read_names(self) -> tuple[str, ...]:
        """The tensors that the node reads: its inputs, then those that only its bodies read."""
        captured = set(self.captured).difference(self.inputs)
        return (*filter(None, self.inputs), *sorted(captured))


class GraphIndex:
    """The index of a model's main graph, or of one body in it; built once, never changed."""

    def __init__(
        self,
        source: Source,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        graph: GraphProto | None = None,
        path: str = "",
        outer: GraphIndex | None = None,
        owner: Node | None = None,
    ) -> None:
        if graph is None:
            graph = source.model.graph
        self.source = source
        self.graph = graph
        #: Shapes that inputs of the main graph are assumed to have.
        self.input_shapes = dict(shapes or {})
        #: "" for the main graph, else the path of the body, as in ``if_3.then_branch``.
        self.path = path
        #: The index of the graph around a body.
        self.outer = outer
        #: The node that the body belongs to, in that graph; None for the main graph.
        self.owner = owner
        self.nodes = self._make_nodes()
        self.by_label = {node.label: node for node in self.nodes}
        self.producers = _map_producers(self.nodes)
        #: The readers of each tensor with their slots; -1 for a node whose body reads it.
        self.consumers = _map_consumers(self.nodes)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        #: Graph inputs that the caller must feed; initializers listed as inputs are constants.
        self.inputs = {v.name: v for v in graph.input if v.name not in self.initializers}
        self.outputs = {value.name: value for value in graph.output}
        #: Weights that the file stores as sparse tensors, here or in a graph around.
        self.sparse_weights = self._find_sparse_weights()
        #: Tensors of this graph whose values follow from the file alone.
        self.constants = set(self.initializers)
        self._values = ConstantValues(graph)
        self._find_constants()
        self.bodies: tuple[GraphIndex, ...] = tuple(self._index_bodies())

    def _make_nodes(self) -> tuple[Node, ...]:
        labels = node_labels(self.graph)
        nodes: list[Node] = []
        for label, proto in zip(labels, self.graph.node, strict=True):
            nodes.append(Node(len(nodes), label, proto))
        return tuple(nodes)

    def _index_bodies(self) -> Iterator[GraphIndex]:
        for node in self.nodes:
            for name, body in node.bodies:
                path = qualified_name(self.path, f"{node.label}.{name}")
                yield GraphIndex(self.source, None, body, path, self, node)

    @property
    def position(self) -> int:
        """The position of the owner in the graph around it, 0 for the main graph."""
        return 0 if self.owner is None else self.owner.position

    @property
    def scopes(self) -> Mapping[str, GraphIndex]:
        """This graph and all bodies in it by path, each before the bodies in it.

        Not cached: an index that held itself would stay in memory.
        """
        scopes: dict[str, GraphIndex] = {self.path: self}
        for body in self.bodies:
            scopes.update(body.scopes)
        return scopes

    def scope(self, edge: Edge) -> GraphIndex:
        """Return the index of the graph that contains an edge."""
        return self if edge.graph == self.path else self.scopes[edge.graph]

    def edges(self) -> Iterator[Edge]:
        """Yield every edge of this graph, in node order and slot order; bodies are not entered."""
        for node in self.nodes:
            yield from self.edges_into(node)

    def edges_into(self, node: Node) -> Iterator[Edge]:
        """Yield the edges into a node of this graph, in slot order."""
        for slot, tensor in enumerate(node.inputs):
            if tensor:
                yield Edge(self.path, node.label, slot, tensor)

    def edge(self, node: Node, slot: int) -> Edge:
        """Return the edge into an input slot of a node of this graph."""
        return Edge(self.path, node.label, slot, node.inputs[slot])

    def node(self, edge: Edge) -> Node:
        """Return the node that reads an edge's tensor."""
        return self.scope(edge).by_label[edge.node]

    def edges_from(self, tensor: str) -> tuple[Edge, ...]:
        """Return the edges of this graph that read a tensor, in node order."""
        edges = []
        for node, slot in self.consumers.get(tensor, ()):
            if slot >= 0:
                edges.append(self.edge(node, slot))
        return tuple(edges)

    def defining_scope(self, tensor: str) -> GraphIndex:
        """Return the index of the graph that defines a tensor: this one, or one around it."""
        if self.outer is None or tensor in self.producers:
            return self
        if tensor in self.inputs or tensor in self.initializers:
            return self
        return self.outer.defining_scope(tensor)

    def is_live(self, node: Node) -> bool:
        """Whether an output of the model depends on a node of this graph."""
        return (self.path, node.label) in self._live_nodes

    @cached_property
    def _live_nodes(self) -> frozenset[tuple[str, str]]:
        """The live nodes of the model: path of the graph and label."""
        return find_live_nodes(self.graph) if self.outer is None else self.outer._live_nodes

    def live_readers(self, tensor: str) -> list[Reader]:
        """Return the readers of a tensor that an output of the model depends on."""
        readers = self.consumers.get(tensor, ())
        return [(node, slot) for node, slot in readers if self.is_live(node)]

    def sole_consumer(self, tensor: str) -> Node | None:
        """Return the only live node that reads a tensor.

        None for several or no readers, and for a graph output.
        """
        readers = self.live_readers(tensor)
        if len(readers) != 1 or tensor in self.outputs:
            return None
        return readers[0][0]

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor's value follows from the file alone.

        It does for an initializer, a Constant, and what is computed from such tensors only.
        """
        return tensor in self.defining_scope(tensor).constants

    def constant(self, tensor: str) -> Array:
        """Return the value of a constant tensor, stored or computed from constants.

        Raises ModelError where its data cannot be read or computed.
        """
        scope = self.defining_scope(tensor)
        return scope._values.read(scope, tensor)

    def forget_constants(self) -> None:
        """Drop the cached values of constants."""
        for scope in self.scopes.values():
            scope._values.clear()

    def elem_type(self, tensor: str) -> int:
        """Return the ONNX element type of a tensor; 0 (undefined) where inference has none."""
        return self._type(tensor)[0]

    def shape(self, tensor: str) -> Dims | None:
        """Return a tensor's dimensions, None for each unknown one.

        None where even the rank is unknown.
        """
        return self._type(tensor)[1]

    def rank(self, tensor: str) -> int | None:
        """Return a tensor's number of dimensions, or None where it is unknown."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor holds float32, float16 or bfloat16, as far as inference can tell."""
        return self.elem_type(tensor) in _FLOAT_TYPES

    @property
    def elem_types(self) -> set[int]:
        """The ONNX element types of the tensors of this graph."""
        return {elem_type for elem_type, _ in self._types.values()}

    def _type(self, tensor: str) -> TensorType:
        return self.defining_scope(tensor)._types.get(tensor, (0, None))

    @cached_property
    def _types(self) -> dict[str, TensorType]:
        types: dict[str, TensorType] = {}
        # the indexes of bodies need it again; it is as large as the graph
        inferred = self._inferred_graph if self.bodies else self._infer_graph()
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            types[value.name] = declared_type(value)
        for name, tensor in self.initializers.items():
            types[name] = (tensor.data_type, tuple(tensor.dims))
        return types

    @cached_property
    def _inferred_graph(self) -> GraphProto:
        return self._infer_graph()

    def _infer_graph(self) -> GraphProto:
        """Return this graph with inferred types."""
        if self.outer is None:
            return infer_types(self.source.model, self.graph, self.input_shapes)
        if self.owner is not None and self.owner.op == "Loop":
            # From the Loop, inference drops the shapes of the body's state, declared or not.
            return infer_types(self.source.model, self._complete_body(self.outer), {})
        inferred_owner = self.outer._inferred_graph.node[self.position]
        bodies = node_bodies(inferred_owner)
        return next(body for name, body in bodies if self.path.endswith(f".{name}"))

    def _complete_body(self, outer: GraphIndex) -> GraphProto:
        """Return a copy of this body to which the tensors that it reads from outside are added.

        Small stored tensors are added as initializers, others as inputs.
        """
        body = GraphProto()
        body.CopyFrom(self.graph)
        for name in sorted(captured_names(body)):
            stored = outer.defining_scope(name).initializers.get(name)
            elem_type = outer.elem_type(name)
            if stored is not None and count_value_bytes(stored) <= LARGEST_FOLDED_BYTES:
                body.initializer.append(stored)
            elif elem_type:
                shape = outer.shape(name)
                body.input.append(onnx.helper.make_tensor_value_info(name, elem_type, shape))
        return body

    def _find_sparse_weights(self) -> set[str]:
        names = {tensor.values.name for tensor in self.graph.sparse_initializer}
        return names if self.outer is None else names | self.outer.sparse_weights

    def _find_constants(self) -> None:
        opset = own_opset(self.source.model.opset_import)
        for node in self.nodes:
            if node.op == "Constant" or self._is_folded(node, opset):
                self.constants.update(filter(None, node.outputs))

    def _is_folded(self, node: Node, opset: int) -> bool:
        """Whether a node has a constant result, by the constants of this graph before it."""
        branch = find_taken_branch(self, node.proto)
        if branch is not None:
            is_known = all(map(self.is_constant, captured_names(branch)))
            return is_known and all(is_foldable(inner, opset) for inner in branch.node)
        is_known = bool(node.inputs) and all(map(self.is_constant, node.read_names))
        return is_known and is_foldable(node.proto, opset)


def _map_producers(nodes: Iterable[Node]) -> dict[str, Node]:
    producers: dict[str, Node] = {}
    for node in nodes:
        for tensor in node.outputs:
            if tensor:
                producers[tensor] = node
    return producers


def _map_consumers(nodes: Iterable[Node]) -> dict[str, list[Reader]]:
    readers: dict[str, list[Reader]] = {}
    for node in nodes:
        for slot, tensor in enumerate(node.inputs):
            readers.setdefault(tensor, []).append((node, slot))
        for tensor in node.captured:
            readers.setdefault(tensor, []).append((node, -1))
    return readers


def _list_captured(proto: NodeProto) -> tuple[str, ...]:
    names: list[str] = []
    for _, body in node_bodies(proto):
        names += sorted(captured_names(body))
    return tuple(names)
