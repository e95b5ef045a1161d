"""Sizes of layers: channels, rows and columns, attention lengths, and how far a layer lies from the outputs."""

from __future__ import annotations

import math

import msgspec

from qdq.graph.index import GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, MOVES_VALUES
from qdq.graph.patterns import cached_per_graph, find_producer_before_moves

_MATRIX = 2


class Channels(msgspec.Struct, frozen=True):
    """The channels of a convolution."""

    #: Channels that one group reads.
    inputs: int
    #: Channels that all groups make.
    outputs: int
    groups: int


def convolution_channels(index: GraphIndex, node: Node) -> Channels | None:
    """Return the channels of a Conv or ConvTranspose, or None for other nodes and unknown weights."""
    if node.op not in CONVOLUTIONS or not operands(index, node):
        return None
    shape, groups = index.shape(node.inputs[1]), int(node.attribute("group", 1))
    if shape is None or len(shape) < _MATRIX or shape[0] is None or shape[1] is None:
        return None
    if node.op == "Conv":
        return Channels(shape[1], shape[0], groups)
    return Channels(shape[0] // groups, shape[1] * groups, groups)


def kernel_shape(index: GraphIndex, node: Node) -> tuple[int, ...]:
    """Return the size of a convolution's window along each spatial dimension."""
    shape = index.shape(node.inputs[1]) or ()
    return tuple(size or 1 for size in shape[_MATRIX:])


def reads_graph_input(index: GraphIndex, node: Node) -> bool:
    """Whether a node's first input is fed to the graph, operators that only move values left out."""
    tensor = node.inputs[0]
    while (maker := index.producers.get(tensor)) is not None and maker.op in MOVES_VALUES:
        tensor = maker.inputs[0]
    return tensor in index.inputs


def product_sizes(index: GraphIndex, node: Node) -> tuple[int, int] | None:
    """Return K and N of a Gemm or MatMul: how many products each value sums, and how many values a row holds. None where unknown."""
    weight = (
        index.shape(node.inputs[1])
        if node.op in MATRIX_PRODUCTS and operands(index, node)
        else None
    )
    if weight is None or len(weight) < _MATRIX or weight[-1] is None or weight[-2] is None:
        return None
    turned = node.op == "Gemm" and node.attribute("transB", 0)
    return (weight[-1], weight[-2]) if turned else (weight[-2], weight[-1])


def product_rows(index: GraphIndex, node: Node) -> int | None:
    """Return M of a Gemm or MatMul with a constant right operand: the rows of all matrices of its left one. None where unknown."""
    if (
        node.op not in MATRIX_PRODUCTS
        or not operands(index, node)
        or not index.is_constant(node.inputs[1])
    ):
        return None
    shape = index.shape(node.inputs[0])
    if shape is None:
        return None
    counted = shape[1:] if node.op == "Gemm" and node.attribute("transA", 0) else shape[:-1]
    known = [size for size in counted if size is not None]
    return math.prod(known) if len(known) == len(counted) else None


def attention_length(index: GraphIndex, node: Node) -> int | None:
    """Return over how many positions an attention goes, for each of its two products of computed matrices; None for other nodes."""
    if node.op != "MatMul" or any(index.is_constant(i) for i in node.inputs):
        return None
    scores = (
        node.outputs[0]
        if _leads_to_softmax(index, node)
        else node.inputs[0]
        if _comes_from_softmax(index, node)
        else ""
    )
    shape = index.shape(scores) if scores else None
    return shape[-1] if shape else None


@cached_per_graph
def layers_to_output(index: GraphIndex) -> dict[str, int]:
    """Return for each node the fewest weighted operators, itself included, on a way from it to an output of the main graph."""
    known: dict[str, int] = {}
    end = (
        [0]
        if index.outer is None
        else _behind(layers_to_output(index.outer), index.outer.nodes[index.position])
    )
    for node in reversed(index.nodes):
        readers = [
            reader for tensor in node.outputs for reader, _ in index.consumers.get(tensor, ())
        ]
        behind = [
            *(end if any(tensor in index.outputs for tensor in node.outputs) else []),
            *(d for reader in readers for d in _behind(known, reader)),
        ]
        if behind:
            known[node.label] = min(behind) + bool(operands(index, node))
    return known


def _behind(known: dict[str, int], node: Node) -> list[int]:
    return [known[node.label]] if node.label in known else []


def _leads_to_softmax(index: GraphIndex, node: Node) -> bool:
    tensor = node.outputs[0]
    while reader := index.sole_consumer(tensor):
        if reader.op == "Softmax":
            return True
        if reader.op not in (*MOVES_VALUES, "Mul", "Div", "Add", "Where"):
            return False
        tensor = reader.outputs[0]
    return False


def _comes_from_softmax(index: GraphIndex, node: Node) -> bool:
    maker = find_producer_before_moves(index, node.inputs[0])
    return maker is not None and maker.op == "Softmax"
