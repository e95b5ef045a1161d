"""The nodes of a model whose results reach an output; compilers drop all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.graph.bodies import list_names
from qdq.graph.operators import PLANNED_BODIES

if TYPE_CHECKING:
    from qdq.graph.index import GraphIndex, Node

#: The path of a graph and the name of a tensor or the label of a node in it.
_Key = tuple[str, str]

#: Inputs of a Loop before its state: the trip count and the condition.
_LOOP_HEAD = 2

#: Outputs of a Loop's body before its state: the condition.
_LOOP_BODY_HEAD = 1

#: Inputs of a Loop's body before its state: the iteration and the condition.
_LOOP_BODY_INPUT_HEAD = 2


class Liveness:
    """The live nodes of a main graph and all bodies in it.

    A node is live if an output of the model depends on one of its results. A result of an If, Loop
    or Scan that no live node reads makes the nodes dead that compute it alone in the bodies.
    """

    def __init__(self, index: GraphIndex) -> None:
        self._nodes: set[_Key] = set()
        self._tensors: set[_Key] = set()
        self._pending: list[tuple[GraphIndex, str]] = []
        for name in index.outputs:
            self._require(index, name)
        while self._pending:
            scope, tensor = self._pending.pop()
            self._visit(scope, tensor)

    def is_live(self, index: GraphIndex, node: Node) -> bool:
        """Whether an output of the model depends on a node of a graph or body."""
        return (index.path, node.label) in self._nodes

    def _require(self, index: GraphIndex, tensor: str) -> None:
        scope = index.defining_scope(tensor)
        key = (scope.path, tensor)
        if tensor and key not in self._tensors:
            self._tensors.add(key)
            self._pending.append((scope, tensor))

    def _visit(self, scope: GraphIndex, tensor: str) -> None:
        """Require what a live tensor depends on."""
        producer = scope.producers.get(tensor)
        if producer is None:
            self._visit_body_input(scope, tensor)
            return
        key = (scope.path, producer.label)
        if key not in self._nodes:
            self._nodes.add(key)
            self._require_operands(scope, producer)
        if producer.op in PLANNED_BODIES:
            position = producer.outputs.index(tensor)
            self._require_result(scope, producer, position)

    def _require_operands(self, scope: GraphIndex, node: Node) -> None:
        """Require the inputs of a live node, but not yet the state of a Loop or Scan."""
        if node.op == "Loop":
            operands = node.inputs[:_LOOP_HEAD]
            self._require_body_outputs(scope, node, 0)
        elif node.op == "Scan":
            operands = node.inputs[_count_scan_states(node) :]
        else:
            operands = node.inputs
        for name in operands:
            self._require(scope, name)
        if node.op not in PLANNED_BODIES:
            for body in scope.bodies_of(node):
                for name in body.outputs:
                    self._require(body, name)

    def _require_result(self, scope: GraphIndex, node: Node, position: int) -> None:
        """Require what computes one result of a live If, Loop or Scan."""
        if node.op in ("Loop", "Scan") and position < _count_states(node):
            self._require_state(scope, node, position)
            return
        head = _LOOP_BODY_HEAD if node.op == "Loop" else 0
        self._require_body_outputs(scope, node, head + position)

    def _require_state(self, scope: GraphIndex, node: Node, position: int) -> None:
        """Require a state of a Loop or Scan: where it begins, and what updates it."""
        before = _LOOP_HEAD if node.op == "Loop" else 0
        head = _LOOP_BODY_HEAD if node.op == "Loop" else 0
        self._require(scope, node.inputs[before + position])
        self._require_body_outputs(scope, node, head + position)

    def _require_body_outputs(self, scope: GraphIndex, node: Node, position: int) -> None:
        """Require the output at a position of each body of a node."""
        for body in scope.bodies_of(node):
            names = list_names(body.graph.output)
            for name in names[position : position + 1]:
                self._require(body, name)

    def _visit_body_input(self, scope: GraphIndex, tensor: str) -> None:
        """Require the state that an input of a Loop's or Scan's body holds."""
        owner = scope.owner
        names = list_names(scope.graph.input)
        if owner is None or scope.outer is None or tensor not in names:
            return
        head = _LOOP_BODY_INPUT_HEAD if owner.op == "Loop" else 0
        position = names.index(tensor) - head
        if owner.op in ("Loop", "Scan") and 0 <= position < _count_states(owner):
            self._require_state(scope.outer, owner, position)


def _count_states(node: Node) -> int:
    """Return the number of states of a Loop or Scan."""
    if node.op == "Loop":
        return max(0, len(node.inputs) - _LOOP_HEAD)
    return _count_scan_states(node)


def _count_scan_states(node: Node) -> int:
    scanned: int = node.attribute("num_scan_inputs", 0)
    return max(0, len(node.inputs) - scanned)
