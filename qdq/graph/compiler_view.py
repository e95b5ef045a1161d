"""A graph as compilers read it: without aliases, and with the one name of equal operators.

TensorRT-RTX 1.7.1 builds the same engine of a residual network with an alias of any kind before an
Add, on its skip or after it, and with a Sum of two tensors in its place. So whatever asks what is
before or after a node asks this view; what is written to the file has the file's edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from qdq.arrays import Array
from qdq.graph.aliases import find_origin, is_alias
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.shape_inference import Dims, TensorType

_ADDENDS = 2


class CompilerView(GraphIndex):
    """The index of a graph whose nodes read the origins of aliases.

    Aliases are no nodes of it, and a Sum of two tensors is an Add. Labels, slots and types are
    those of the file.
    """

    outer: CompilerView | None
    bodies: tuple[CompilerView, ...]

    def __init__(self, file_index: GraphIndex, outer: CompilerView | None = None) -> None:
        if outer is None and file_index.outer is not None:
            outer = CompilerView(file_index.outer)
        owner = None
        if outer is not None and file_index.owner is not None:
            owner = outer.by_label[file_index.owner.label]
        #: The index of the graph as the file has it.
        self.file_index = file_index
        self._aliases = _map_aliases(file_index)
        super().__init__(
            file_index.source,
            file_index.input_shapes,
            file_index.graph,
            file_index.path,
            outer,
            owner,
        )
        self.outputs = {
            find_origin(file_index, name): value for name, value in file_index.outputs.items()
        }

    @property
    def scopes(self) -> Mapping[str, CompilerView]:
        """The views of this graph and of all bodies in it, by path."""
        scopes: dict[str, CompilerView] = {self.path: self}
        for body in self.bodies:
            scopes.update(body.scopes)
        return scopes

    def file_edge(self, edge: Edge) -> Edge:
        """Return an edge of this graph as the file has it: with the alias that the node reads."""
        return self.file_index.edge(self.file_index.by_label[edge.node], edge.slot)

    def operator_names(self, node: Node) -> set[str]:
        """Return the operators that a node is: the one in the file and the one in this graph."""
        return {node.op, self.file_index.by_label[node.label].op}

    def constant(self, tensor: str) -> Array:
        """Return the value of a constant tensor; the index of the file keeps it."""
        return self.file_index.constant(tensor)

    def list_aliases(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """Return the names of some tensors and of their aliases in the file, sorted."""
        names = set(tensors)
        for tensor in tuple(names):
            names.update(self._aliases.get(tensor, ()))
        return tuple(sorted(names))

    def is_live(self, node: Node) -> bool:
        """Whether an output of the model depends on a node of this graph."""
        return self.file_index.is_live(node)

    def _find_constants(self) -> None:
        self.constants = self.file_index.constants

    def _make_nodes(self) -> tuple[Node, ...]:
        nodes: list[Node] = []
        for node in self.file_index.nodes:
            if not self._is_removed(node):
                nodes.append(self._read_origins(node))
        return tuple(nodes)

    def _is_removed(self, node: Node) -> bool:
        """Whether a node is an alias; a Dropout whose mask is read stays for the mask."""
        if not is_alias(self.file_index, node):
            return False
        index = self.file_index
        others = node.outputs[1:]
        return not any(name in index.consumers or name in index.outputs for name in others)

    def _read_origins(self, node: Node) -> Node:
        """Return a copy of a node that reads origins, named as compilers treat it."""
        copy = Node(node.position, node.label, node.proto)
        copy.inputs = tuple(find_origin(self.file_index, name) for name in node.inputs)
        copy.captured = tuple(find_origin(self.file_index, name) for name in node.captured)
        if node.op == "Sum" and len(node.inputs) == _ADDENDS:
            copy.op = "Add"
        return copy

    def _index_bodies(self) -> Iterator[CompilerView]:
        for body in self.file_index.bodies:
            yield CompilerView(body, self)

    def _type(self, tensor: str) -> TensorType:
        """Return the type of a tensor, completed by the declared shapes of its aliases."""
        elem_type, shape = self.file_index._type(tensor)
        for alias in self._aliases.get(tensor, ()):
            alias_type, alias_shape = self.file_index._type(alias)
            elem_type = elem_type or alias_type
            shape = _join_shapes(shape, alias_shape)
        return elem_type, shape


def _map_aliases(index: GraphIndex) -> dict[str, list[str]]:
    """Return the aliases of each tensor in a graph."""
    aliases: dict[str, list[str]] = {}
    for node in index.nodes:
        if is_alias(index, node):
            origin = find_origin(index, node.outputs[0])
            aliases.setdefault(origin, []).append(node.outputs[0])
    return aliases


def _join_shapes(shape: Dims | None, other: Dims | None) -> Dims | None:
    """Return a shape with the dimensions that either of two shapes of one tensor knows."""
    if shape is None or other is None or len(shape) != len(other):
        return other if shape is None else shape
    return tuple(
        size if other_size is None else other_size
        for size, other_size in zip(shape, other, strict=True)
    )
