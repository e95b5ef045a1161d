"""Sums of powers and exponentials, up to the operator that brings their values back."""

from __future__ import annotations

from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Node
from qdq.graph.patterns import cached_per_graph

_GROWS = ("Exp", "Pow")
_CARRIES = ("Add", "Sum", "ReduceSum", "ReduceMean", "Clip", "Max")
_BRINGS_BACK = ("Sqrt", "Log", "Div", "Reciprocal")


@cached_per_graph
def power_sum_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of the nodes from the reader of a power to its root, logarithm or quotient.

    A power whose sums lead nowhere else has none.
    """
    labels: set[str] = set()
    for node in index.nodes:
        if node.op in _GROWS:
            _follow(index, node, labels, {})
    return frozenset(labels)


def _follow(index: CompilerView, node: Node, labels: set[str], leads: dict[str, bool]) -> bool:
    """Add the readers of a node that lead to an end, and return whether any does."""
    leads.setdefault(node.label, False)
    for reader, slot in index.live_readers(node.outputs[0]):
        if reader.label in leads or slot < 0:
            is_lead = leads.get(reader.label, False)
        elif reader.op in _BRINGS_BACK:
            is_lead = True
        else:
            is_lead = reader.op in _CARRIES and _follow(index, reader, labels, leads)
        if is_lead:
            labels.add(reader.label)
            leads[node.label] = True
    return leads[node.label]
