"""Parts of a float graph in float32 that are between nodes in 16 bits, without a reason."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from onnx import TensorProto

from qdq.graph.bodies import qualified_name
from qdq.graph.float_nodes import has_float32, is_type_cast
from qdq.graph.float_types import FloatType
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import WEIGHTED
from qdq.precision.cast_model import read_kept_nodes
from qdq.precision.float_plan import FloatRequest, plan_float
from qdq.quantized.model import QuantizedModel
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import choose_float_rules
from qdq.target import Target

#: Operators that cost kernels or bytes in float32. Built with TensorRT-RTX 1.7.1 for sm86 and sm75,
#: the Casts around activations, arithmetic, Softmax and LayerNormalization are fused at no cost.
_COSTLY = (*WEIGHTED, "MaxPool", "AveragePool", "Concat")


class Island(msgspec.Struct, frozen=True):
    """Connected nodes in float32, with Casts from and to 16 bits around them."""

    #: The path of their graph.
    path: str
    nodes: tuple[Node, ...]
    #: The nodes without pairs whose Casts the compiler does not fuse at no cost.
    costly: tuple[Node, ...]


def find_islands(
    quantized: QuantizedModel, float_type: FloatType, rules: RuleSet, targets: tuple[Target, ...]
) -> Iterator[Island]:
    """Yield the parts in float32 with costly nodes that neither rules nor ONNX keep there.

    The nodes that an earlier cast recorded in the model are kept too. Nodes with pairs run in INT8,
    whatever their float type.
    """
    index = quantized.index
    source = index.source
    paired = {qualified_name(pair.edge.graph, pair.edge.node) for pair in quantized.edges}
    request = FloatRequest(
        float_type,
        choose_float_rules(rules),
        targets,
        recorded=read_kept_nodes(source.model, float_type),
    )
    kept = {node.node for node in plan_float(index, request).kept}
    for scope in index.scopes.values():
        wide: dict[str, Node] = {}
        for node in scope.nodes:
            is_kept = qualified_name(scope.path, node.label) in kept
            if not is_kept and _is_wide(scope, node, float_type):
                wide[node.label] = node
        for nodes in _connect(scope, wide):
            costly = tuple(_list_costly(scope, nodes, paired))
            if costly and _is_between(scope, nodes, float_type):
                yield Island(scope.path, nodes, costly)


def _list_costly(scope: GraphIndex, nodes: tuple[Node, ...], paired: set[str]) -> Iterator[Node]:
    for node in nodes:
        if node.op in _COSTLY and qualified_name(scope.path, node.label) not in paired:
            yield node


def _is_wide(scope: GraphIndex, node: Node, float_type: FloatType) -> bool:
    """Whether a node computes with float32 alone."""
    if is_type_cast(scope, node, float_type) or not has_float32(scope, node):
        return False
    if all(scope.is_constant(name) for name in node.outputs if name):
        return False
    names = (*node.inputs, *node.outputs)
    return all(scope.elem_type(name) != float_type.code for name in names if name)


def _connect(scope: GraphIndex, wide: dict[str, Node]) -> Iterator[tuple[Node, ...]]:
    """Yield the nodes that float32 tensors connect, each group in graph order."""
    remaining = dict(wide)
    while remaining:
        _, node = remaining.popitem()
        group = [node]
        pending = [node]
        while pending:
            for neighbor in _list_neighbors(scope, pending.pop()):
                if remaining.pop(neighbor.label, None) is not None:
                    group.append(neighbor)
                    pending.append(neighbor)
        yield tuple(sorted(group, key=lambda item: item.position))


def _list_neighbors(scope: GraphIndex, node: Node) -> Iterator[Node]:
    """Yield the nodes that compute or read a float32 tensor of a node."""
    for name in node.inputs:
        producer = scope.producers.get(name)
        if producer is not None and scope.elem_type(name) == TensorProto.FLOAT:
            yield producer
    for name in node.outputs:
        if name and scope.elem_type(name) == TensorProto.FLOAT:
            yield from (reader for reader, slot in scope.consumers.get(name, ()) if slot >= 0)


def _is_between(scope: GraphIndex, nodes: tuple[Node, ...], float_type: FloatType) -> bool:
    """Whether Casts from the 16-bit type lead to some nodes, and Casts to it lead away."""
    neighbors = [neighbor for node in nodes for neighbor in _list_neighbors(scope, node)]
    types: set[int] = set()
    for neighbor in neighbors:
        if is_type_cast(scope, neighbor, float_type):
            types.add(int(neighbor.attribute("to", 0)))
    return {TensorProto.FLOAT, float_type.code} <= types
