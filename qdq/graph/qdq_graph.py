"""A graph with its Q/DQ pairs, read once for all stages that look at them.

Each access to a field of a protobuf message makes a new Python object, so that a pass over the
nodes of a large graph costs as much as what is done with them. One `QdqGraph` is passed from the
conversion to plain pairs, the stripping and the quantized edges to the checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import chain

from onnx import GraphProto, NodeProto, TensorProto

from qdq.arrays import Array
from qdq.graph.bodies import list_names, make_labels, node_bodies, qualified_name
from qdq.graph.model_location import ModelLocation
from qdq.graph.pairs import PAIR_OPERATORS, HalfNode, QdqPair, match_halves, read_constants


class QdqGraph:
    """One graph of a model as the file has it: nodes, stored tensors, pairs and bodies.

    The lists of nodes, operators, inputs, outputs and labels have one entry per node, in the order
    of the graph, which must not change while its `QdqGraph` is used.
    """

    def __init__(
        self,
        graph: GraphProto,
        location: ModelLocation | None = None,
        path: str = "",
        outer: QdqGraph | None = None,
    ) -> None:
        self.graph = graph
        self.location = location or ModelLocation()
        #: "" for the main graph, else the path of the body, as in ``if_3.then_branch``.
        self.path = path
        #: The graph around a body.
        self.outer = outer
        self.nodes: tuple[NodeProto, ...] = tuple(graph.node)
        #: The operator of each node, without its domain.
        self.operators: list[str] = [node.op_type for node in self.nodes]
        self.inputs: list[tuple[str, ...]] = [tuple(node.input) for node in self.nodes]
        self.outputs: list[tuple[str, ...]] = [tuple(node.output) for node in self.nodes]
        #: The names of the inputs and outputs of the graph.
        self.graph_inputs = frozenset(list_names(graph.input))
        self.graph_outputs = frozenset(list_names(graph.output))
        #: The tensors that this graph and those around it store, in initializers and Constants.
        self.stored: dict[str, TensorProto] = self._map_stored()
        #: The pairs in node order.
        self.pairs: tuple[QdqPair, ...] = self._find_pairs()
        #: The bodies of nodes by position, each with the name of its attribute.
        self.bodies: dict[int, tuple[tuple[str, QdqGraph], ...]] = dict(self._read_bodies())
        self._parameters: dict[str, Array | None] = {}

    def _map_stored(self) -> dict[str, TensorProto]:
        stored = dict(self.outer.stored) if self.outer else {}
        stored.update({tensor.name: tensor for tensor in self.graph.initializer})
        positions = enumerate(self.operators)
        constants = [self.nodes[position] for position, op in positions if op == "Constant"]
        return stored | read_constants(constants) if constants else stored

    def _find_pairs(self) -> tuple[QdqPair, ...]:
        halves: dict[int, HalfNode] = {}
        for position in self.half_positions:
            halves[position] = HalfNode(
                self.nodes[position],
                self.operators[position],
                self.inputs[position],
                self.outputs[position],
            )
        return match_halves(halves, self.producers, self.stored)

    def _read_bodies(self) -> Iterator[tuple[int, tuple[tuple[str, QdqGraph], ...]]]:
        for position, node in enumerate(self.nodes):
            bodies = node_bodies(node)
            if bodies:
                yield position, tuple(self._read_body(position, *body) for body in bodies)

    def _read_body(self, position: int, name: str, body: GraphProto) -> tuple[str, QdqGraph]:
        path = f"{self.qualified_label(position)}.{name}"
        return name, QdqGraph(body, self.location, path, self)

    @cached_property
    def labels(self) -> list[str]:
        """A unique label for each node, without the path of the graph."""
        return make_labels(list_names(self.nodes))

    @cached_property
    def producers(self) -> dict[str, int]:
        """The position of the node that computes each tensor."""
        producers: dict[str, int] = {}
        for position, names in enumerate(self.outputs):
            for name in names:
                producers[name] = position
        return producers

    @cached_property
    def half_positions(self) -> tuple[int, ...]:
        """The positions of the Q and DQ nodes."""
        positions = enumerate(self.operators)
        return tuple(position for position, op in positions if op in PAIR_OPERATORS)

    @property
    def graphs(self) -> Iterator[QdqGraph]:
        """This graph and all bodies in it, each before the bodies inside it."""
        yield self
        for body in self.inner_graphs:
            yield from body.graphs

    @property
    def inner_graphs(self) -> Iterator[QdqGraph]:
        """The bodies of this graph's nodes, without those inside them."""
        for bodies in self.bodies.values():
            yield from (body for _, body in bodies)

    @cached_property
    def all_operators(self) -> frozenset[tuple[str, str]]:
        """The domain and the operator of each node of this graph and its bodies."""
        used: set[tuple[str, str]] = set()
        for graph in self.graphs:
            domains = [node.domain for node in graph.nodes]
            used.update(zip(domains, graph.operators, strict=True))
        return frozenset(used)

    @cached_property
    def readers(self) -> Counter[str]:
        """How often each tensor is read by nodes, bodies and graph outputs."""
        count = Counter(chain.from_iterable(self.inputs))
        count.update(list_names(self.graph.output))
        for body in self.inner_graphs:
            count.update(body.readers)
        return count

    def qualified_label(self, position: int) -> str:
        """Return the label of a node after the path of its graph."""
        return qualified_name(self.path, self.labels[position])

    def read_parameter(self, name: str) -> Array | None:
        """Return the values of a stored scale or zero point, which stay in memory.

        None for what is not stored, and for text. Raises ModelError where they cannot be read.
        """
        if name not in self._parameters:
            self._parameters[name] = self._read_stored(name)
        return self._parameters[name]

    def _read_stored(self, name: str) -> Array | None:
        tensor = self.stored.get(name)
        if tensor is None or tensor.data_type == TensorProto.STRING:
            return None
        return self.location.read_values(tensor)
