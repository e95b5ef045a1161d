"""The nodes of a model whose results reach an output; compilers drop all others."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from onnx import GraphProto, NodeProto

from qdq.graph.bodies import list_names, node_bodies, node_labels, qualified_name
from qdq.graph.operators import PLANNED_BODIES, REPEATING

#: Inputs of a Loop before its state: the trip count and the condition.
_LOOP_HEAD = 2

#: Outputs of a Loop's body before its state: the condition.
_LOOP_BODY_HEAD = 1

#: Inputs of a Loop's body before its state: the iteration and the condition.
_LOOP_BODY_INPUT_HEAD = 2


def find_live_nodes(graph: GraphProto) -> frozenset[tuple[str, str]]:
    """Return the nodes that an output of the model depends on, as path of the graph and label.

    A result of an If, Loop or Scan that no live node reads makes the nodes dead that compute it
    alone in the bodies.
    """
    return _LivenessSearch(graph).run()


class _Scope(msgspec.Struct, frozen=True, eq=False):
    """A graph or body, and where it is."""

    graph: GraphProto
    path: str
    labels: list[str]
    #: The position of the node that computes each tensor.
    producers: dict[str, int]
    #: The names of inputs, initializers and results.
    defined: set[str]
    #: The graph around a body, and the position of the node that owns it.
    outer: _Scope | None = None
    owner: int = 0

    def defining_scope(self, tensor: str) -> _Scope:
        """Return the graph that defines a tensor: this one, or one around it."""
        scope = self
        while scope.outer is not None and tensor not in scope.defined:
            scope = scope.outer
        return scope


def _make_scope(
    graph: GraphProto, path: str, outer: _Scope | None = None, owner: int = 0
) -> _Scope:
    producers: dict[str, int] = {}
    for position, node in enumerate(graph.node):
        producers.update(dict.fromkeys(filter(None, node.output), position))
    defined = {*producers, *list_names(graph.input), *list_names(graph.initializer)}
    return _Scope(graph, path, node_labels(graph), producers, defined, outer, owner)


class _LivenessSearch:
    """The search from a model's outputs back through its graphs."""

    def __init__(self, graph: GraphProto) -> None:
        self._nodes: set[tuple[str, str]] = set()
        self._tensors: set[tuple[str, str]] = set()
        self._bodies: dict[tuple[str, int], list[_Scope]] = {}
        self._pending: list[tuple[_Scope, str]] = []
        main = _make_scope(graph, "")
        for name in list_names(graph.output):
            self._require(main, name)

    def run(self) -> frozenset[tuple[str, str]]:
        """Return the live nodes."""
        while self._pending:
            scope, tensor = self._pending.pop()
            self._visit(scope, tensor)
        return frozenset(self._nodes)

    def _require(self, reader: _Scope, tensor: str) -> None:
        scope = reader.defining_scope(tensor)
        key = (scope.path, tensor)
        if tensor and key not in self._tensors:
            self._tensors.add(key)
            self._pending.append((scope, tensor))

    def _visit(self, scope: _Scope, tensor: str) -> None:
        """Require what a live tensor depends on."""
        position = scope.producers.get(tensor)
        if position is None:
            self._visit_body_input(scope, tensor)
            return
        node = scope.graph.node[position]
        key = (scope.path, scope.labels[position])
        if key not in self._nodes:
            self._nodes.add(key)
            self._require_operands(scope, position)
        if node.op_type in PLANNED_BODIES:
            self._require_result(scope, position, list(node.output).index(tensor))

    def _require_operands(self, scope: _Scope, position: int) -> None:
        """Require the inputs of a live node, but not yet the state of a Loop or Scan."""
        node = scope.graph.node[position]
        operands = list(node.input)
        if node.op_type == "Loop":
            operands = operands[:_LOOP_HEAD]
            self._require_body_outputs(scope, position, 0)
        elif node.op_type == "Scan":
            operands = operands[_count_states(node) :]
        for name in operands:
            self._require(scope, name)
        if node.op_type not in PLANNED_BODIES:
            for body in self._list_bodies(scope, position):
                for name in list_names(body.graph.output):
                    self._require(body, name)

    def _require_result(self, scope: _Scope, position: int, result: int) -> None:
        """Require what computes one result of a live If, Loop or Scan."""
        node = scope.graph.node[position]
        if node.op_type in REPEATING and result < _count_states(node):
            self._require_state(scope, position, result)
            return
        head = _LOOP_BODY_HEAD if node.op_type == "Loop" else 0
        self._require_body_outputs(scope, position, head + result)

    def _require_state(self, scope: _Scope, position: int, state: int) -> None:
        """Require a state of a Loop or Scan: where it begins, and what updates it."""
        node = scope.graph.node[position]
        is_loop = node.op_type == "Loop"
        self._require(scope, node.input[state + (_LOOP_HEAD if is_loop else 0)])
        self._require_body_outputs(scope, position, state + (_LOOP_BODY_HEAD if is_loop else 0))

    def _require_body_outputs(self, scope: _Scope, position: int, output: int) -> None:
        """Require the output at a position of each body of a node."""
        for body in self._list_bodies(scope, position):
            names = list_names(body.graph.output)
            for name in names[output : output + 1]:
                self._require(body, name)

    def _visit_body_input(self, scope: _Scope, tensor: str) -> None:
        """Require the state that an input of a Loop's or Scan's body holds."""
        names = list_names(scope.graph.input)
        if scope.outer is None or tensor not in names:
            return
        owner = scope.outer.graph.node[scope.owner]
        head = _LOOP_BODY_INPUT_HEAD if owner.op_type == "Loop" else 0
        state = names.index(tensor) - head
        if owner.op_type in REPEATING and 0 <= state < _count_states(owner):
            self._require_state(scope.outer, scope.owner, state)

    def _list_bodies(self, scope: _Scope, position: int) -> list[_Scope]:
        key = (scope.path, position)
        if key not in self._bodies:
            self._bodies[key] = list(_make_bodies(scope, position))
        return self._bodies[key]


def _make_bodies(scope: _Scope, position: int) -> Iterator[_Scope]:
    node = scope.graph.node[position]
    for name, body in node_bodies(node):
        path = qualified_name(scope.path, f"{scope.labels[position]}.{name}")
        yield _make_scope(body, path, scope, position)


def _count_states(node: NodeProto) -> int:
    """Return the number of states of a Loop or Scan."""
    if node.op_type == "Loop":
        return max(0, len(node.input) - _LOOP_HEAD)
    scanned = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
    return max(0, len(node.input) - scanned)
