"""Sizes of layers: channels, rows and columns, attention lengths, and distances to the outputs."""

from __future__ import annotations

import math

import msgspec

from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex, Node
from qdq.graph.neighbors import has_constant_input
from qdq.graph.operands import operands
from qdq.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, MOVES_VALUES, SUMS
from qdq.graph.patterns import cached_per_graph, find_producer_before_moves
from qdq.graph.shape_inference import known_sizes

_MATRIX_RANK = 2

#: Operators between a product and the Softmax of its result, with those that only move values.
_SCORE_OPERATORS = ("Mul", "Div", *SUMS, "Where")


class Channels(msgspec.Struct, frozen=True):
    """The channels of a convolution."""

    #: Input channels of one group.
    inputs: int
    #: Output channels of all groups.
    outputs: int
    groups: int


def convolution_channels(index: GraphIndex, node: Node) -> Channels | None:
    """Return the channels of a Conv or ConvTranspose, None for other nodes and unknown weights."""
    if node.op not in CONVOLUTIONS or not operands(index, node):
        return None
    shape = index.shape(node.inputs[1])
    if shape is None or len(shape) < _MATRIX_RANK:
        return None
    first, second = shape[:_MATRIX_RANK]
    if first is None or second is None:
        return None
    groups = int(node.attribute("group", 1))
    if node.op == "Conv":
        return Channels(second, first, groups)
    return Channels(first // groups, second * groups, groups)


def kernel_shape(index: GraphIndex, node: Node) -> tuple[int, ...]:
    """Return a convolution's window size along each spatial dimension, 1 for unknown ones."""
    shape = index.shape(node.inputs[1]) or ()
    return tuple(size or 1 for size in shape[_MATRIX_RANK:])


def reads_graph_input(index: CompilerView, node: Node) -> bool:
    """Whether a node's first input is fed to the graph, perhaps through moves of values."""
    tensor = node.inputs[0]
    producer = index.producers.get(tensor)
    while producer is not None and producer.op in MOVES_VALUES:
        tensor = producer.inputs[0]
        producer = index.producers.get(tensor)
    return tensor in index.inputs


def product_sizes(index: GraphIndex, node: Node) -> tuple[int, int] | None:
    """Return K and N of a Gemm or MatMul, None where unknown.

    K is the number of products that are summed into a value, N the number of values in a row.
    """
    if node.op not in MATRIX_PRODUCTS or not operands(index, node):
        return None
    shape = index.shape(node.inputs[1])
    if shape is None or len(shape) < _MATRIX_RANK:
        return None
    rows, columns = shape[-_MATRIX_RANK:]
    if rows is None or columns is None:
        return None
    if node.op == "Gemm" and node.attribute("transB", 0):
        return columns, rows
    return rows, columns


def product_rows(index: GraphIndex, node: Node) -> int | None:
    """Return M of a Gemm or MatMul with a constant right operand, None where unknown.

    M is the number of rows of all matrices of its left operand.
    """
    if node.op not in MATRIX_PRODUCTS or not operands(index, node):
        return None
    shape = index.shape(node.inputs[0])
    if shape is None or not index.is_constant(node.inputs[1]):
        return None
    is_transposed = node.op == "Gemm" and node.attribute("transA", 0)
    sizes = known_sizes(shape[1:] if is_transposed else shape[:-1])
    return None if sizes is None else math.prod(sizes)


def attention_length(index: CompilerView, node: Node) -> int | None:
    """Return the number of positions of an attention, for its two products of computed matrices.

    None for other nodes and unknown lengths.
    """
    if node.op != "MatMul" or has_constant_input(index, node):
        return None
    if _leads_to_softmax(index, node):
        scores = node.outputs[0]
    elif _follows_softmax(index, node):
        scores = node.inputs[0]
    else:
        return None
    shape = index.shape(scores)
    return shape[-1] if shape else None


@cached_per_graph
def layers_to_output(index: CompilerView) -> dict[str, int]:
    """Return for each node the fewest weighted operators on a path to a main graph output.

    The node itself counts. Nodes without a path are left out.
    """
    distances: dict[str, int] = {}
    outer_distance = _outer_distance(index)
    for node in reversed(index.nodes):
        ahead = []
        for tensor in node.outputs:
            if tensor in index.outputs and outer_distance is not None:
                ahead.append(outer_distance)
            for reader, _ in index.consumers.get(tensor, ()):
                if reader.label in distances:
                    ahead.append(distances[reader.label])
        if ahead:
            layer_count = 1 if operands(index, node) else 0
            distances[node.label] = min(ahead) + layer_count
    return distances


def _outer_distance(index: CompilerView) -> int | None:
    """Return the distance from a graph's outputs to the main graph's, None without a path."""
    if index.outer is None or index.owner is None:
        return 0
    return layers_to_output(index.outer).get(index.owner.label)


def _leads_to_softmax(index: CompilerView, node: Node) -> bool:
    reader = index.sole_consumer(node.outputs[0])
    while reader is not None:
        if reader.op == "Softmax":
            return True
        if reader.op not in MOVES_VALUES and reader.op not in _SCORE_OPERATORS:
            return False
        reader = index.sole_consumer(reader.outputs[0])
    return False


def _follows_softmax(index: CompilerView, node: Node) -> bool:
    producer = find_producer_before_moves(index, node.inputs[0])
    return producer is not None and producer.op == "Softmax"
