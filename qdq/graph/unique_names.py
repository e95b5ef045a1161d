"""Names that a model uses, and new ones that it does not."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto

from qdq.graph.bodies import all_graphs, list_names


class UniqueNames:
    """The names of nodes, tensors, inputs and outputs in a graph and its bodies.

    With `include_value_info`, tensors that only `value_info` still lists count too: the type
    it declares for one of them could be wrong for a new tensor of that name.
    """

    def __init__(self, graph: GraphProto, include_value_info: bool) -> None:
        self._taken: set[str] = set()
        for scope in all_graphs(graph):
            self._taken.update(_names_in(scope))
            if include_value_info:
                self._taken.update(list_names(scope.value_info))

    def fresh(self, requested: str) -> str:
        """Return a name that is not used yet: the requested one, or that with a number."""
        name = requested
        number = 1
        while name in self._taken:
            number += 1
            name = f"{requested}_{number}"
        self._taken.add(name)
        return name


def _names_in(graph: GraphProto) -> Iterable[str]:
    for field in (graph.input, graph.output, graph.initializer, graph.node):
        yield from list_names(field)
    for node in graph.node:
        yield from node.input
        yield from node.output
