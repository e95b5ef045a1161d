"""The edges of a float model that the pairs of a quantized model, made by any tool, are on.

Tools rename nodes and weights, and fold a Relu into the pair after it. Results keep their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.sensitivity.layer_errors import FOLDED


class EdgeMatcher:
    """The edges of a float model that stand for those of a quantized model's float graph."""

    def __init__(self, index: GraphIndex, stripped: GraphIndex) -> None:
        self._scopes = index.scopes
        self._nodes: Mapping[tuple[str, str], Node] = dict(_match_nodes(self._scopes, stripped))
        self._stripped = stripped

    def find_edge(self, edge: Edge) -> Edge | None:
        """Return the edge of the float model for one of the quantized model, None without one.

        Both tensors are constants, or neither is.
        """
        node = self._nodes.get((edge.graph, edge.node))
        if node is None or edge.slot >= len(node.inputs) or not node.inputs[edge.slot]:
            return None
        scope = self._scopes[edge.graph]
        is_constant = self._stripped.scope(edge).is_constant(edge.tensor)
        if scope.is_constant(node.inputs[edge.slot]) != is_constant:
            return None
        return scope.edge(node, edge.slot)


def _match_nodes(
    scopes: Mapping[str, GraphIndex], stripped: GraphIndex
) -> Iterator[tuple[tuple[str, str], Node]]:
    """Yield the node of the float model for each node of the quantized one that has one."""
    for path, scope in stripped.scopes.items():
        float_scope = scopes.get(path)
        if float_scope is None:
            continue
        for node in scope.nodes:
            match = _match_node(float_scope, node)
            if match is not None:
                yield (path, node.label), match


def _match_node(scope: GraphIndex, node: Node) -> Node | None:
    """Return the node that computes the same tensor, maybe before a folded Relu."""
    for tensor in filter(None, node.outputs):
        match = scope.producers.get(tensor)
        while match is not None and match.op != node.op and match.op in FOLDED:
            match = scope.producers.get(match.inputs[0])
        if match is not None and match.op == node.op:
            return match
    return None
