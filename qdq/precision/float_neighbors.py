"""Nodes that stay in float32 for their neighbours, so that fewer Casts are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set

from onnx import TensorProto

from qdq.graph.float_nodes import is_type_cast
from qdq.graph.float_types import FloatType
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import ACTIVATIONS, ARITHMETIC, MOVES_VALUES, PICKS_VALUES

#: Operators that only move or create values, so that they are as good in either type.
_NEUTRAL = (
    *MOVES_VALUES,
    *PICKS_VALUES,
    "Cast",
    "Concat",
    "ConstantOfShape",
    "Pad",
    "Where",
)

#: Operators on single values, which compilers fuse with their neighbours.
_ELEMENTWISE = (*ARITHMETIC, *ACTIVATIONS, "Abs", "Erf", "Log", "Neg", "Reciprocal", "Sqrt")

#: Operators with one input of floats that keep or cut it, and have no kernels of their own.
_CUTS = (*MOVES_VALUES, "Slice", "Split")


class FloatNeighbors:
    """The nodes of one graph that are as good in float32 as in the short type.

    At the ends of the main graph the values are float32, unless `casts_ends`.
    """

    def __init__(self, scope: GraphIndex, float_type: FloatType, casts_ends: bool) -> None:
        self._scope = scope
        self._has_ends = scope.outer is None and not casts_ends
        self._nodes = [
            node
            for node in scope.nodes
            if self._has_float32_result(node) and not is_type_cast(scope, node, float_type)
        ]

    def list_between(self, kept: Set[str]) -> tuple[Node, ...]:
        """Return the nodes between nodes in float32, whose labels are `kept`, in graph order.

        Those that compute read a kept node, or one that reads it.
        """
        operators = (*_NEUTRAL, *_ELEMENTWISE)
        nodes = [node for node in self._nodes if node.op in operators and node.label not in kept]
        around = {*kept, *(node.label for node in nodes)}
        pending = True
        while pending:
            count = len(around)
            computed = self._list_computed(kept, around - kept)
            # both ways, so that a chain of any length is left in one turn
            for node in (*nodes, *reversed(nodes)):
                if node.label in around and not self._is_between(node, around, computed):
                    around.remove(node.label)
            pending = len(around) < count
        inner = around - kept
        return tuple(node for node in nodes if node.label in inner)

    def _list_computed(self, kept: Set[str], inner: Set[str]) -> set[str]:
        """Return the kept nodes, and those of `inner` that read their values through others."""
        computed = set(kept)
        for node in self._nodes:
            producers = map(self._scope.producers.get, node.inputs)
            if node.label in inner and any(p and p.label in computed for p in producers):
                computed.add(node.label)
        return computed

    def list_before(self, kept: Set[str]) -> tuple[Node, ...]:
        """Return the nodes that cut a tensor for several readers in float32, in graph order.

        With them in float32, one Cast before them replaces those after.
        """
        cuts = {node.label: node for node in self._nodes if self._is_cut(node)}
        around = set(kept)
        for node in reversed(self._nodes):
            if node.label in cuts and self._are_readers_in(node, around, False):
                around.add(node.label)
        around -= kept
        candidates = tuple(cuts[label] for label in cuts if label in around)
        roots = self._find_roots(candidates)
        saved: Counter[str] = Counter()
        for node in candidates:
            saved[roots[node.label]] += sum(self._is_read_by(name, kept) for name in node.outputs)
        for tensor in saved:
            saved[tensor] -= not self._is_read_by(tensor, kept)
        return tuple(node for node in candidates if saved[roots[node.label]] > 0)

    def _find_roots(self, cuts: tuple[Node, ...]) -> dict[str, str]:
        """Return the tensor that each node cuts first, through the others, by label."""
        roots: dict[str, str] = {}
        for node in cuts:
            producer = self._scope.producers.get(node.inputs[0])
            label = producer.label if producer is not None else ""
            roots[node.label] = roots.get(label, node.inputs[0])
        return roots

    def _is_cut(self, node: Node) -> bool:
        return node.op in _CUTS and not self._scope.is_constant(node.inputs[0])

    def _has_float32_result(self, node: Node) -> bool:
        return any(self._scope.elem_type(name) == TensorProto.FLOAT for name in node.outputs)

    def _is_between(self, node: Node, around: Set[str], computed: Set[str]) -> bool:
        """Whether all float32 neighbours of a node are in `around`, or ends of the model.

        Nodes that compute must read one of `computed`.
        """
        if node.op in _ELEMENTWISE and node.label not in computed:
            return False
        for name in node.inputs:
            if self._scope.elem_type(name) != TensorProto.FLOAT or self._scope.is_constant(name):
                continue
            producer = self._scope.producers.get(name)
            is_end = self._has_ends and name in self._scope.inputs
            if not is_end and (producer is None or producer.label not in around):
                return False
        return self._are_readers_in(node, around, self._has_ends)

    def _are_readers_in(self, node: Node, around: Set[str], has_ends: bool) -> bool:
        """Whether all readers of a node's results are in a set of labels."""
        for name in node.outputs:
            if name in self._scope.outputs and not has_ends:
                return False
            for reader, slot in self._scope.consumers.get(name, ()):
                if slot < 0 or reader.label not in around:
                    return False
        return True

    def _is_read_by(self, tensor: str, labels: Set[str]) -> bool:
        readers: Iterator[str] = (node.label for node, _ in self._scope.consumers.get(tensor, ()))
        return not labels.isdisjoint(readers)
