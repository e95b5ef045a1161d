"""Groups of nodes with one meaning: normalisations, activations and gates of all exporters.

Each group is found from a node that every form of it has, such as the root of a normalisation or
the erf of a Gelu. So the result does not depend on the order of nodes, and the search takes linear
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from qdq.graph.aliases import (
    find_tensor_before_casts,
    is_alias,
    is_alias_or_float_cast,
    is_float_cast,
)
from qdq.graph.compiler_view import CompilerView
from qdq.graph.decompositions import find_decomposed_gelu, find_decomposed_normalization
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.neighbors import find_input_producer, has_constant_input
from qdq.graph.operands import operands
from qdq.graph.operators import GATES, MOVES_VALUES, PICKS_VALUES, SUMS
from qdq.graph.shape_inference import known_sizes

PLANE_RANK = 4

#: Operators that normalise, in one node.
NORMALIZATIONS = (
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "LpNormalization",
    "LRN",
    "com.microsoft.LayerNormalization",
    "com.microsoft.SkipLayerNormalization",
    "com.microsoft.SimplifiedLayerNormalization",
)

_GELUS = ("Gelu", "com.microsoft.Gelu", "com.microsoft.FastGelu")

#: The slot of Pad's value.
_PAD_VALUE = 2

#: The first axis of the plane in [batch, channel, height, width].
_PLANE_AXIS = 2
_Graph = TypeVar("_Graph", bound=GraphIndex)
_Result = TypeVar("_Result")


def cached_per_graph(
    function: Callable[[_Graph], _Result],
) -> Callable[[_Graph], _Result]:
    """Cache a function's result for a graph for as long as the graph's index is in memory."""
    results: WeakKeyDictionary[_Graph, _Result] = WeakKeyDictionary()

    @wraps(function)
    def cached(index: _Graph) -> _Result:
        if index not in results:
            results[index] = function(index)
        return results[index]

    return cached


@cached_per_graph
def multiplied_tensors(index: CompilerView) -> dict[str, Edge]:
    """Return the tensors that weighted operators multiply, each with the first such edge.

    Of a tensor that is cast to another float type it is the one before the Cast.
    """
    first_edges: dict[str, Edge] = {}
    for node in index.nodes:
        for edge in operands(index, node):
            tensor = find_tensor_before_casts(index, edge.tensor)
            first_edges.setdefault(tensor, edge)
    return first_edges


def can_commute_with_quantization(index: GraphIndex, node: Node) -> bool:
    """Whether quantizing before a node and quantizing after it have the same result, for one scale.

    They do for aliases, and for operators that move, pick or repeat values: TensorRT documents it
    for MaxPool (explicit quantization, Q/DQ propagation), and the others have the same proof. Of
    Resize they do for the nearest mode, of Pad for padding with zeros or with values of the tensor
    itself.
    """
    if node.op == "Resize":
        return bool(node.attribute("mode", b"nearest") == b"nearest")
    if node.op == "Pad":
        return _pads_with_zeros_or_itself(index, node)
    return node.op in MOVES_VALUES or node.op in PICKS_VALUES or is_alias(index, node)


def carries_pairs(index: GraphIndex, node: Node) -> bool:
    """Whether the pair and the range of a node's first input are those of its results too.

    They are past operators that commute with quantization, and past Casts between float types,
    which round a value by less than a step of INT8.
    """
    return can_commute_with_quantization(index, node) or is_float_cast(index, node)


def trace_axis_to_input(index: GraphIndex, node: Node, axis: int | None) -> int | None:
    """Return the input axis that a node which keeps values turns into an output axis.

    None where there is none, and for None.
    """
    if axis is None or is_alias_or_float_cast(index, node):
        return axis
    input_shape = index.shape(node.inputs[0])
    if node.op == "Transpose":
        axes = range(len(input_shape or ()))
        order = list(node.attribute("perm", reversed(axes)))
        return int(order[axis]) if axis < len(order) else None
    input_sizes = known_sizes(input_shape)
    output_sizes = known_sizes(index.shape(node.outputs[0]))
    if input_sizes is None or output_sizes is None:
        return None
    outer_size = math.prod(output_sizes[:axis])
    for input_axis, size in enumerate(input_sizes):
        input_outer_size = math.prod(input_sizes[:input_axis])
        if size == output_sizes[axis] and input_outer_size == outer_size:
            return input_axis
    return None


def find_producer_before_moves(index: CompilerView, tensor: str) -> Node | None:
    """Return the node that makes a tensor, skipping operators that only move values.

    None for a graph input or a stored tensor.
    """
    node = index.producers.get(tensor)
    while node is not None and node.op in MOVES_VALUES:
        node = index.producers.get(node.inputs[0])
    return node


@cached_per_graph
def normalization_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of normalisations and of the nodes that others were decomposed into."""
    labels: set[str] = set()
    for node in index.nodes:
        if node.op in NORMALIZATIONS:
            labels.add(node.label)
        elif node.op == "Sqrt":
            labels |= find_decomposed_normalization(index, node)
    return frozenset(labels)


@cached_per_graph
def decomposed_normalization_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of the nodes that normalisations were decomposed into."""
    labels: set[str] = set()
    for node in index.nodes:
        if node.op == "Sqrt":
            labels |= find_decomposed_normalization(index, node)
    return frozenset(labels)


@cached_per_graph
def gelu_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of Gelu nodes, and of the nodes of a Gelu that is written with Erf or Tanh.

    Gelu: Hendrycks and Gimpel, arXiv:1606.08415.
    """
    labels: set[str] = set()
    for node in index.nodes:
        if node.op in _GELUS:
            labels.add(node.label)
        elif node.op in ("Erf", "Tanh"):
            labels |= find_decomposed_gelu(index, node)
    return frozenset(labels)


@cached_per_graph
def tail_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of the nodes on whose results no weighted operator depends.

    A node with bodies counts as weighted. Outputs of a body may be inputs of the weighted operators
    in it. So a body with a weighted operator has no tail, and in a body without one every node is.
    """
    weighted = [node for node in index.nodes if node.bodies or operands(index, node)]
    if weighted and index.outer is not None:
        return frozenset()
    needed = {node.label for node in weighted}
    pending = weighted
    while pending:
        node = pending.pop()
        for tensor in node.read_names:
            producer = index.producers.get(tensor)
            if producer is not None and producer.label not in needed:
                needed.add(producer.label)
                pending.append(producer)
    return frozenset(node.label for node in index.nodes if node.label not in needed)


def find_gate(index: CompilerView, node: Node) -> tuple[str, str] | None:
    """Return the gate and the gated tensor of a Mul by a Sigmoid or HardSigmoid.

    None for other nodes. The gate may also be written as Clip(x + 3, 0, 6) / 6.
    """
    if node.op != "Mul" or len(node.inputs) != 2:  # noqa: PLR2004 two factors
        return None
    for gate, gated in (node.inputs, node.inputs[::-1]):
        if index.is_constant(gated):
            continue
        if _is_gate(index, find_producer_before_moves(index, gate)):
            return gate, gated
    return None


def find_self_gated(index: CompilerView, node: Node) -> str | None:
    """Return the tensor that a node multiplies by its Sigmoid or HardSigmoid, as in SiLU.

    None for other nodes.
    """
    pair = find_gate(index, node)
    if pair is None:
        return None
    gate, gated = pair
    producer = index.producers.get(gate)
    if producer is None or producer.inputs[0] != gated:
        return None
    return gated


def is_channel_gate(index: CompilerView, node: Node) -> bool:
    """Whether a node is the Mul of a squeeze-and-excite block (Hu et al., arXiv:1709.01507).

    Its gate holds one value per channel.
    """
    pair = find_gate(index, node)
    if pair is None:
        return False
    gate_shape = index.shape(pair[0])
    if gate_shape is None or len(gate_shape) <= _PLANE_AXIS:
        return False
    gate_plane = gate_shape[_PLANE_AXIS:]
    if any(size != 1 for size in gate_plane):
        return False
    gated_shape = index.shape(pair[1])
    if gated_shape is None:
        return True
    if len(gated_shape) != len(gate_shape):
        return False
    return gated_shape[_PLANE_AXIS:] != gate_plane


@cached_per_graph
def attention_masks(index: CompilerView) -> frozenset[str]:
    """Return the labels of the Adds of a mask or a bias to attention scores.

    They lead to a Softmax through moves, scaling and other Adds of this kind.
    """
    masks: set[str] = set()
    pending = []
    for node in index.nodes:
        if node.op in ("Softmax", "LogSoftmax"):
            pending.append(node.inputs[0])
    while pending:
        producer = index.producers.get(pending.pop())
        if producer is None or producer.label in masks:
            continue
        if producer.op in SUMS:
            masks.add(producer.label)
        if not _keeps_scores(index, producer):
            continue
        for tensor in producer.inputs:
            readers = index.live_readers(tensor)
            if len(readers) == 1:
                pending.append(tensor)
    return frozenset(masks)


def _keeps_scores(index: CompilerView, node: Node) -> bool:
    """Whether a node moves, adds to or scales attention scores."""
    if node.op in MOVES_VALUES or node.op in SUMS:
        return True
    return node.op in ("Mul", "Div") and has_constant_input(index, node)


def _pads_with_zeros_or_itself(index: GraphIndex, node: Node) -> bool:
    if node.attribute("mode", b"constant") != b"constant":
        return True
    if len(node.inputs) <= _PAD_VALUE or not node.inputs[_PAD_VALUE]:
        return True
    value = node.inputs[_PAD_VALUE]
    return index.is_constant(value) and not index.constant(value).any()


def _is_gate(index: CompilerView, producer: Node | None) -> bool:
    if producer is None:
        return False
    if producer.op in ("Div", "Mul") and has_constant_input(index, producer):
        producer = find_input_producer(index, producer, ("Clip",))
        if producer is None:
            return False
    if producer.op != "Clip":
        return producer.op in GATES
    shift = index.producers.get(producer.inputs[0])
    return shift is not None and shift.op == "Add" and has_constant_input(index, shift)


def is_spatial_mean(index: GraphIndex, node: Node) -> bool:
    """Whether a node is a ReduceMean over the plane of [batch, channel, height, width].

    It is another form of GlobalAveragePool.
    """
    if node.op != "ReduceMean" or index.rank(node.inputs[0]) != PLANE_RANK:
        return False
    axes = _read_reduced_axes(index, node)
    return sorted(axis % PLANE_RANK for axis in axes) == [2, 3]


def is_average(index: GraphIndex, node: Node) -> bool:
    """Whether a node is a pool that averages, or a mean over the spatial axes."""
    if node.op == "ReduceMean":
        return is_spatial_mean(index, node)
    return node.op in ("AveragePool", "GlobalAveragePool")


def _read_reduced_axes(index: GraphIndex, node: Node) -> list[int]:
    """Return the axes of a ReduceMean: an attribute until opset 18, then an input."""
    axes = node.attribute("axes")
    if axes is not None:
        return list(axes)
    if len(node.inputs) == 1:
        return []
    tensor = node.inputs[1]
    if not index.is_constant(tensor):
        return []
    values: list[int] = index.constant(tensor).ravel().tolist()
    return values
