"""Names that a model uses, and new ones that it does not."""

from __future__ import annotations

import onnx

from qdq.graph.bodies import node_bodies


class UniqueNames:
    """The names of nodes, tensors, inputs and outputs in a graph and its bodies.

    `told` counts the tensors, too, that only `value_info` still knows: what it says of one of another type would be wrong of a new one.
    """

    def __init__(self, graph: onnx.GraphProto, told: bool) -> None:
        self._taken = _names(graph, told)

    def fresh(self, wanted: str) -> str:
        """Return a name that is not used yet: the wanted one, or that with a number."""
        name, n = wanted, 1
        while name in self._taken:
            n += 1
            name = f"{wanted}_{n}"
        self._taken.add(name)
        return name


def _names(graph: onnx.GraphProto, told: bool) -> set[str]:
    fields = (
        graph.input,
        graph.output,
        graph.initializer,
        graph.node,
        *([graph.value_info] if told else []),
    )
    names = {item.name for field in fields for item in field}
    for node in graph.node:
        names.update(node.input, node.output)
        for _, body in node_bodies(node):
            names |= _names(body, told)
    return names
