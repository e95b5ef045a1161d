"""Source -> GraphIndex: edges, producers, consumers, constants, types and shapes of one model.

The main graph and every body in it are a scope of their own, an index each: a body sees the
constants and types of the graphs around it, but what they compute it takes as given from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.errors import ModelError, first_line
from qdq.graph.bodies import (
    captured_names,
    node_bodies,
    node_labels,
    qualified_name,
    read_tensor_values,
)
from qdq.graph.shape_inference import LARGEST_FOLDED_BYTES, declared_type, infer_types
from qdq.graph.source import Source

#: Element type and dimensions, as `elem_type` and `shape` give them.
TensorType = tuple[int, tuple[int | None, ...] | None]

_UNFOLDABLE_PREFIXES = ("Random", "Multinomial", "Bernoulli")


class Edge(msgspec.Struct, frozen=True, order=True):
    """One input slot of one node: the unit of every decision."""

    #: "" for the main graph, else the path of the body it lies in.
    graph: str
    #: Label of the consuming node.
    node: str
    slot: int
    tensor: str

    def __str__(self) -> str:
        return f"{self.tensor} -> {qualified_name(self.graph, self.node)}[{self.slot}]"

    @property
    def qualified_tensor(self) -> str:
        """The tensor as it is read here: its name, in a body behind the body's path. Ranges and scales go by it."""
        return qualified_name(self.graph, self.tensor)


class Node:
    """One node of a graph, read-only."""

    __slots__ = ("inputs", "label", "op", "outputs", "position", "proto")

    def __init__(self, position: int, label: str, proto: onnx.NodeProto) -> None:
        self.position = position
        #: The node's name, or ``#17`` by its position where the name is empty or taken.
        self.label = label
        self.proto = proto
        #: The operator; one of another domain carries it, as in ``com.microsoft.Gelu``.
        self.op = (
            proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        )
        self.inputs = tuple(proto.input)
        self.outputs = tuple(proto.output)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, or `default` where the node does not carry it."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    @property
    def bodies(self) -> tuple[tuple[str, onnx.GraphProto], ...]:
        """The graphs that the node carries as attributes, by attribute name."""
        return node_bodies(self.proto)


class GraphIndex:
    """What the stages ask of a model's main graph, or of one body in it; built once, never changed."""

    def __init__(
        self,
        source: Source,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        graph: onnx.GraphProto | None = None,
        path: str = "",
        outer: GraphIndex | None = None,
        position: int = 0,
    ) -> None:
        self.source = source
        #: Shapes that inputs of the main graph are taken to have.
        self.input_shapes = dict(shapes or {})
        #: "" for the main graph, else the path of the body, as in ``if_3.then_branch``.
        self.path = path
        #: The index of the graph around a body.
        self.outer = outer
        #: Position there of the node that a body belongs to.
        self.position = position
        self.graph = graph = source.model.graph if graph is None else graph
        self.nodes = tuple(
            Node(i, label, node)
            for i, (label, node) in enumerate(zip(node_labels(graph), graph.node, strict=True))
        )
        self.by_label = {node.label: node for node in self.nodes}
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers = _consumers(self.nodes)
        self.initializers = {t.name: t for t in graph.initializer}
        #: Graph inputs that the caller must feed; initializers listed as inputs are constants.
        self.inputs = {i.name: i for i in graph.input if i.name not in self.initializers}
        self.outputs = {o.name: o for o in graph.output}
        #: Weights that the file stores as sparse tensors.
        self.sparse: set[str] = {s.values.name for s in graph.sparse_initializer} | (
            outer.sparse if outer else set()
        )
        self.constants = _constant_names(self)
        self._values: dict[str, Array] = {}
        self._bodies = tuple(
            _body_index(self, node, name, body) for node in self.nodes for name, body in node.bodies
        )

    @property
    def scopes(self) -> dict[str, GraphIndex]:
        """This graph and all bodies in it by path, each before the bodies in it; not kept, for an index that holds itself stays in memory."""
        return {self.path: self} | {
            path: scope for body in self._bodies for path, scope in body.scopes.items()
        }

    def scope(self, edge: Edge) -> GraphIndex:
        """Return the index of the graph that an edge lies in."""
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
        """Return the node that an edge goes into."""
        return self.scope(edge).by_label[edge.node]

    def edges_from(self, tensor: str) -> tuple[Edge, ...]:
        """Return the edges of this graph that read a tensor, in node order."""
        return tuple(
            self.edge(node, slot) for node, slot in self.consumers.get(tensor, ()) if slot >= 0
        )

    def defining_scope(self, tensor: str) -> GraphIndex:
        """Return the index of the graph that a tensor is made in: this one, or one around it."""
        if (
            self.outer is None
            or tensor in self.producers
            or tensor in self.inputs
            or tensor in self.initializers
        ):
            return self
        return self.outer.defining_scope(tensor)

    def sole_consumer(self, tensor: str) -> Node | None:
        """Return the one node that reads a tensor, or None if several do, or it is a graph output or unread."""
        readers = self.consumers.get(tensor, ())
        return readers[0][0] if len(readers) == 1 and tensor not in self.outputs else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor's value follows from the file alone: an initializer, a Constant, or made of such."""
        return tensor in self.defining_scope(tensor).constants

    def constant(self, tensor: str) -> Array:
        """Return the value of a constant tensor, following Identity, Reshape, Transpose, Cast and the like.

        Raises ModelError where its data cannot be read or computed.
        """
        if (home := self.defining_scope(tensor)) is not self:
            return home.constant(tensor)
        if tensor not in self._values:
            self._values[tensor] = _evaluate(self, tensor)
        return self._values[tensor]

    def forget_constants(self) -> None:
        """Drop the cached values of constants."""
        for scope in self.scopes.values():
            scope._values.clear()

    def elem_type(self, tensor: str) -> int:
        """Return the ONNX element type of a tensor; 0 (undefined) where inference found none."""
        return self._type(tensor)[0]

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """Return a tensor's dimensions, None for each unknown one; None where even the rank is unknown."""
        return self._type(tensor)[1]

    def rank(self, tensor: str) -> int | None:
        """Return a tensor's number of dimensions, or None where it is unknown."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor holds float32 or float16 values, as far as type inference can tell."""
        return self.elem_type(tensor) in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)

    def _type(self, tensor: str) -> TensorType:
        return self.defining_scope(tensor)._types.get(tensor, (0, None))

    @cached_property
    def _types(self) -> dict[str, TensorType]:
        inferred = self._inferred
        found = {
            v.name: declared_type(v)
            for v in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        found.update({name: (t.data_type, tuple(t.dims)) for name, t in self.initializers.items()})
        return found

    @cached_property
    def _inferred(self) -> onnx.GraphProto:
        """This graph with the types that inference found."""
        if self.outer is None:
            return infer_types(self.source.model, self.graph, self.input_shapes)
        if (
            self.outer.nodes[self.position].op == "Loop"
        ):  # seen from the Loop, inference forgets the shapes of its state, declared or not
            return infer_types(self.source.model, _with_captured(self.graph, self.outer), {})
        bodies = node_bodies(self.outer._inferred.node[self.position])
        return next(body for name, body in bodies if self.path.endswith(f".{name}"))


def _body_index(around: GraphIndex, node: Node, name: str, body: onnx.GraphProto) -> GraphIndex:
    return GraphIndex(
        around.source,
        None,
        body,
        qualified_name(around.path, f"{node.label}.{name}"),
        around,
        node.position,
    )


def _consumers(nodes: tuple[Node, ...]) -> dict[str, list[tuple[Node, int]]]:
    """Map each tensor to its readers; a body that reads it from outside counts with slot -1."""
    readers: dict[str, list[tuple[Node, int]]] = {}
    for node in nodes:
        for slot, tensor in enumerate(node.inputs):
            readers.setdefault(tensor, []).append((node, slot))
        for _, body in node.bodies:
            for tensor in sorted(captured_names(body)):
                readers.setdefault(tensor, []).append((node, -1))
    return readers


def _constant_names(index: GraphIndex) -> set[str]:
    names = set(index.initializers)

    def known(tensor: str) -> bool:
        return tensor in names or (
            index.outer is not None
            and (home := index.defining_scope(tensor)) is not index
            and tensor in home.constants
        )

    for node in index.nodes:
        foldable = (
            node.proto.domain in ("", "ai.onnx")
            and (not node.bodies or node.op == "If")
            and not node.op.startswith(_UNFOLDABLE_PREFIXES)
        )
        if node.op == "Constant" or (foldable and node.inputs and all(map(known, _reads(node)))):
            names.update(filter(None, node.outputs))
    return names


def _reads(node: Node) -> tuple[str, ...]:
    """Return what a node reads, in its bodies too."""
    inside = {name for _, body in node.bodies for name in captured_names(body)}
    return (*filter(None, node.inputs), *sorted(inside.difference(node.inputs)))


def _evaluate(index: GraphIndex, tensor: str) -> Array:
    try:
        if tensor in index.initializers:
            return read_tensor_values(
                index.initializers[tensor], index.source.name, index.source.folder
            )
        node = index.producers[tensor]
        value = node.attribute("value") if node.op == "Constant" else None
        if value is not None:
            return read_tensor_values(value, index.source.name, None)
        if (
            node.op in ("Shape", "Size")
            and (dims := _known_dims(index, node.inputs[0])) is not None
        ):
            return np.array(
                math.prod(dims)
                if node.op == "Size"
                else dims[slice(node.attribute("start"), node.attribute("end"))],
                np.int64,
            )
        return _run_node(index, node)[node.outputs.index(tensor)]
    except ModelError:
        raise
    except Exception as error:  # ONNX's reference evaluator documents none
        raise ModelError(
            f"{index.source.name}: constant {tensor!r} cannot be computed: {first_line(error)}; export the model with its value stored"
        ) from error


def _known_dims(index: GraphIndex, tensor: str) -> tuple[int, ...] | None:
    dims = tuple(d for d in index.shape(tensor) or () if d is not None)
    return dims if len(dims) == index.rank(tensor) else None


def _run_node(index: GraphIndex, node: Node) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    feeds = {name: index.constant(name) for name in _reads(node)}
    inputs = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape
        )
        for n, v in feeds.items()
    ]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.outputs]
    graph = onnx.helper.make_graph([node.proto], "constant", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=index.source.model.opset_import)
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]


def _with_captured(body: onnx.GraphProto, around: GraphIndex) -> onnx.GraphProto:
    """Return a copy of a body that stands alone: what it reads from outside is an input, or an initializer where it is small."""
    copy = onnx.GraphProto()
    copy.CopyFrom(body)
    for name in sorted(captured_names(body)):
        stored = around.defining_scope(name).initializers.get(name)
        if stored is not None and stored.ByteSize() <= LARGEST_FOLDED_BYTES:
            copy.initializer.append(stored)
        elif around.elem_type(name):
            copy.input.append(
                onnx.helper.make_tensor_value_info(name, around.elem_type(name), around.shape(name))
            )
    return copy
