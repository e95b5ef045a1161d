"""Aliases strewn into a model: nodes that compilers replace by their input."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import onnx
from onnx import helper

from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.loader import load
from qdq.graph.operators import PRODUCTS

KINDS = ("Identity", "Dropout", "Cast", "Sum", "Max", "Min", "Mean", "Concat", "Transpose")

#: Operators whose constants may be read through aliases: ONNX infers no shape from those of others.
_READS_CONSTANTS = (*PRODUCTS, "Add", "Mul", "Sub", "Div")


def alias(kind: str, source: str, result: str, elem_type: int, rank: int) -> onnx.NodeProto:
    """Return a node of a kind whose result is a tensor of at least one dimension."""
    attributes: dict[str, Any] = {}
    if kind == "Cast":
        attributes["to"] = elem_type
    elif kind == "Concat":
        attributes["axis"] = 0
    elif kind == "Transpose":
        attributes["perm"] = list(range(rank))
    return helper.make_node(kind, [source], [result], name=f"alias_{result}", **attributes)


def strew_aliases(
    model: onnx.ModelProto, seed: int, share: float = 0.4, kinds: Iterable[str] = KINDS
) -> onnx.ModelProto:
    """Return a copy with one or two aliases on a share of all float inputs and graph outputs.

    The other nodes have the labels of the model as their names.
    """
    source = load(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(source.model)
    strewing = _Strewing(random.Random(seed), share, tuple(kinds))
    strewing.strew(copy.graph, GraphIndex(source))
    return copy


class _Strewing:
    def __init__(self, rng: random.Random, share: float, kinds: tuple[str, ...]) -> None:
        self._rng = rng
        self._share = share
        self._kinds = kinds
        self._count = 0

    def strew(self, graph: onnx.GraphProto, index: GraphIndex) -> None:
        nodes: list[onnx.NodeProto] = []
        for node, proto in zip(index.nodes, list(graph.node), strict=True):
            proto.name = node.label
            for edge in index.edges_into(node):
                if _may_read_alias(index, node, edge) and self._rng.random() < self._share:
                    nodes += self._chain(index, edge.tensor)
                    proto.input[edge.slot] = nodes[-1].output[0]
            for name, body in node_bodies(proto):
                path = qualified_name(index.path, f"{node.label}.{name}")
                self.strew(body, index.scopes[path])
            nodes.append(proto)
            for slot, tensor in enumerate(node.outputs):
                is_output = tensor in index.outputs and _has_values(index, tensor)
                if is_output and self._rng.random() < self._share:
                    chain = self._chain(index, tensor)
                    proto.output[slot] = chain[0].input[0] = f"{tensor}_before_aliases"
                    chain[-1].output[0] = tensor
                    nodes += chain
        ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(ordered)

    def _chain(self, index: GraphIndex, tensor: str) -> list[onnx.NodeProto]:
        elem_type, rank = index.elem_type(tensor), index.rank(tensor) or 0
        chain: list[onnx.NodeProto] = []
        for _ in range(self._rng.choice([1, 1, 2])):
            self._count += 1
            kind = self._rng.choice(self._kinds)
            result = f"{tensor}_alias_{self._count}"
            source = chain[-1].output[0] if chain else tensor
            chain.append(alias(kind, source, result, elem_type, rank))
        return chain


def _may_read_alias(index: GraphIndex, node: Node, edge: Edge) -> bool:
    if index.is_constant(edge.tensor) and node.op not in _READS_CONSTANTS:
        return False
    return _has_values(index, edge.tensor)


def _has_values(index: GraphIndex, tensor: str) -> bool:
    return index.is_float(tensor) and bool(index.rank(tensor))
