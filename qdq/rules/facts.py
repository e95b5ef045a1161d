"""The words that rules may use: each a pure function of the graph, documented by its docstring.

A fact about nodes may stand behind `from` and `into`; a fact about edges behind `edge`.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.layer_shapes import (
    attention_length,
    convolution_channels,
    kernel_shape,
    layers_to_output,
    product_rows,
    product_sizes,
    reads_graph_input,
)
from qdq.graph.operands import is_operand, operands
from qdq.graph.operators import ACTIVATIONS, MATRIX_PRODUCTS, MOVES_VALUES, QUANTIZABLE_POOLS
from qdq.graph.patterns import (
    attention_masks,
    can_commute_with_quantization,
    find_gate,
    find_producer_before_moves,
    gelu_nodes,
    is_channel_gate,
    is_spatial_mean,
    multiplied_tensors,
    normalization_nodes,
    tail_nodes,
)
from qdq.graph.residual import find_fused_backbone, find_residual_slot
from qdq.rules.kernel_tables import explain_missing_kernel
from qdq.target import Target


@dataclass(frozen=True)
class Scene:
    """What facts may look at: the graph and what the plan is for."""

    index: GraphIndex
    targets: tuple[Target, ...]


#: A fact may ask for numbers, as keyword-only parameters; a rule gives them under ``given``.
NodeFact = Callable[..., bool]
EdgeFact = Callable[..., bool]
NODE_FACTS: dict[str, NodeFact] = {}
EDGE_FACTS: dict[str, EdgeFact] = {}


def node_fact(function: NodeFact) -> NodeFact:
    """Register a function of a node under its name in kebab-case."""
    NODE_FACTS[function.__name__.replace("_", "-")] = function
    return function


def edge_fact(function: EdgeFact) -> EdgeFact:
    """Register a function of an edge under its name in kebab-case."""
    EDGE_FACTS[function.__name__.replace("_", "-")] = function
    return function


def fact_parameters(fact: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the numbers that a fact asks for, in kebab-case."""
    asked = inspect.signature(fact).parameters.values()
    return tuple(p.name.replace("_", "-") for p in asked if p.kind is p.KEYWORD_ONLY)


@node_fact
def weighted(scene: Scene, node: Node) -> bool:
    """A Conv, ConvTranspose, Gemm, MatMul, Einsum that sums products, LSTM, GRU or RNN of float operands, of which at least one is computed."""
    return bool(operands(scene.index, node))


@node_fact
def averaging_pool(scene: Scene, node: Node) -> bool:
    """An AveragePool, GlobalAveragePool or spatial ReduceMean whose result goes only into weighted operators."""
    index = scene.index
    pools = node.op in ("AveragePool", "GlobalAveragePool") or (
        node.op == "ReduceMean" and is_spatial_mean(index, node)
    )
    ends = find_pool_ends(index, node) if pools else ()
    return bool(ends) and all(is_operand(index, edge) for edge in ends)


@node_fact
def max_pool_beside_weighted(scene: Scene, node: Node) -> bool:
    """A MaxPool whose input a weighted operator multiplies too, and whose result goes only into weighted operators and pools, or there by a Concat."""
    index = scene.index
    if node.op != "MaxPool" or node.inputs[0] not in multiplied_tensors(index):
        return False
    ends = find_pool_ends(index, node)
    return bool(ends) and all(
        is_operand(index, edge) or index.node(edge).op in QUANTIZABLE_POOLS for edge in ends
    )


@node_fact
def unfused_batch_normalization(scene: Scene, node: Node) -> bool:
    """A BatchNormalization whose data no weighted operator makes, so that it is not folded into one."""
    if node.op != "BatchNormalization" or scene.index.is_constant(node.inputs[0]):
        return False
    maker = find_producer_before_moves(scene.index, node.inputs[0])
    return maker is None or not operands(scene.index, maker)


@node_fact
def lacks_int8_kernel(scene: Scene, node: Node) -> bool:
    """A layer that has no INT8 kernel on one of the plan's targets, as its kernel table says; an Add fused to such a one; a normalisation only for such."""
    if node.op == "Add":
        slot = find_residual_slot(scene.index, node)
        fused = (
            None if slot is None else find_fused_backbone(scene.index, scene.index.edge(node, slot))
        )
        return fused is not None and lacks_int8_kernel(scene, fused)
    if unfused_batch_normalization(scene, node):
        readers = [
            scene.index.node(edge)
            for edge in _reached(scene.index, node.outputs[0], (*MOVES_VALUES, *ACTIVATIONS))
        ]
        return bool(readers) and all(lacks_int8_kernel(scene, reader) for reader in readers)
    return any(explain_missing_kernel(scene.index, node, target) for target in scene.targets)


@node_fact
def commutes_with_quantization(scene: Scene, node: Node) -> bool:
    """An operator that moves, picks or repeats values: Reshape, Transpose, Slice, Split, MaxPool, Resize to the nearest, Pad with zeros and the like."""
    return can_commute_with_quantization(scene.index, node)


@node_fact
def normalization(scene: Scene, node: Node) -> bool:
    """LayerNormalization and its relatives, and each node of one that was decomposed into means, squares, a root and a division."""
    return node.label in normalization_nodes(scene.index)


@node_fact
def gelu(scene: Scene, node: Node) -> bool:
    """Gelu, and each node of one that is spelled with Erf or with Tanh."""
    return node.label in gelu_nodes(scene.index)


@node_fact
def gate(scene: Scene, node: Node) -> bool:
    """The Mul of a value by a Sigmoid or HardSigmoid, in each spelling: SiLU, hard swish, gated units and squeeze-and-excite."""
    return find_gate(scene.index, node) is not None


@node_fact
def squeeze_excite(scene: Scene, node: Node) -> bool:
    """The Mul of a plane of values by a gate that holds one value for each channel."""
    return is_channel_gate(scene.index, node)


@node_fact
def attention_mask(scene: Scene, node: Node) -> bool:
    """The Add of a mask or a bias to attention scores, in front of their Softmax."""
    return node.label in attention_masks(scene.index)


@node_fact
def embedding(scene: Scene, node: Node) -> bool:
    """A Gather of rows of a constant table by computed indices."""
    return (
        node.op == "Gather"
        and scene.index.is_constant(node.inputs[0])
        and not scene.index.is_constant(node.inputs[1])
    )


@node_fact
def behind_the_last_weighted(scene: Scene, node: Node) -> bool:
    """A node whose result reaches no weighted operator: the decoding of detection heads, final activations, scores."""
    return node.label in tail_nodes(scene.index)


@node_fact
def near_output(scene: Scene, node: Node, *, layers_at_most: float) -> bool:
    """A weighted operator among the last so many on its shortest way to a graph output."""
    distance = layers_to_output(scene.index).get(node.label)
    return bool(operands(scene.index, node)) and distance is not None and distance <= layers_at_most


@node_fact
def narrow_convolution(
    scene: Scene, node: Node, *, channels_below: float, multiple_of: float
) -> bool:
    """A Conv of few channels: fewer than `channels-below` in or out (of a group), and none of the forms that have a fast kernel all the same.

    Those are: without groups, one side a multiple of `multiple-of`, a square kernel, and one side
    wide enough or the graph's input; and with groups, the outputs a multiple and the kernel at least 3.
    """
    sizes = convolution_channels(scene.index, node)
    if sizes is None or (sizes.outputs >= channels_below and sizes.inputs >= channels_below):
        return False
    kernel = kernel_shape(scene.index, node)
    if sizes.groups > 1:
        return bool(sizes.outputs % multiple_of) or any(k < 3 for k in kernel)  # noqa: PLR2004 depthwise kernels begin there
    even = sizes.outputs % multiple_of == 0 or sizes.inputs % multiple_of == 0
    wide = max(sizes.outputs, sizes.inputs) >= channels_below or reads_graph_input(
        scene.index, node
    )
    return not (even and wide and len(set(kernel)) <= 1)


@node_fact
def uneven_groups(scene: Scene, node: Node, *, multiple_of: float) -> bool:
    """A grouped, not depthwise, Conv or ConvTranspose whose groups read or make a number of channels that is no such multiple."""
    sizes = convolution_channels(scene.index, node)
    if (
        sizes is None
        or sizes.groups == 1
        or sizes.groups == sizes.inputs * sizes.groups == sizes.outputs
    ):
        return False
    return bool(sizes.inputs % multiple_of or (sizes.outputs // sizes.groups) % multiple_of)


@node_fact
def small_product(scene: Scene, node: Node, *, size_below: float) -> bool:
    """A Gemm or MatMul that sums over, or makes, fewer than so many values in a row."""
    sizes = product_sizes(scene.index, node)
    return sizes is not None and min(sizes) < size_below


@node_fact
def vector_product(scene: Scene, node: Node) -> bool:
    """A Gemm or MatMul of a single row, in the shapes of the model or of --shapes: a matrix by a vector."""
    return product_rows(scene.index, node) == 1


@node_fact
def long_attention(scene: Scene, node: Node, *, length_above: float) -> bool:
    """One of the two products of an attention over more than so many positions, in the shapes of the model or of --shapes."""
    length = attention_length(scene.index, node)
    return length is not None and length > length_above


@edge_fact
def computed_operand(scene: Scene, edge: Edge) -> bool:
    """An operand of a weighted operator that is computed while the model runs."""
    return not scene.index.is_constant(edge.tensor) and is_operand(scene.index, edge)


@edge_fact
def constant_operand(scene: Scene, edge: Edge) -> bool:
    """An operand of a weighted operator that is known from the file: its weight."""
    return scene.index.is_constant(edge.tensor) and is_operand(scene.index, edge)


@edge_fact
def residual_branch(scene: Scene, edge: Edge) -> bool:
    """The operand of a residual Add that is not the convolution TensorRT fuses with it."""
    return find_residual_slot(scene.index, scene.index.node(edge)) == edge.slot


@edge_fact
def residual_product_branch(scene: Scene, edge: Edge) -> bool:
    """The operand of a residual Add that is not the Gemm or MatMul before it, where a weighted operator multiplies that tensor too."""
    index, node = scene.index, scene.index.node(edge)
    if (
        find_residual_slot(index, node) is not None
        or find_residual_slot(index, node, MATRIX_PRODUCTS) != edge.slot
    ):
        return False
    return edge.tensor in multiplied_tensors(index)


@edge_fact
def constant_table(scene: Scene, edge: Edge) -> bool:
    """A table of float constants on the way to a weighted operator: not its weight, nor a bias, which has one value for each channel.

    A table has several rows and columns; what a Concat joins needs but several values.
    """
    index = scene.index
    if (
        not (index.is_constant(edge.tensor) and index.is_float(edge.tensor))
        or is_operand(index, edge)
        or edge.node in tail_nodes(index)
    ):
        return False
    dimensions = sum(size != 1 for size in index.shape(edge.tensor) or ())
    return dimensions > (0 if index.node(edge).op == "Concat" else 1)


@edge_fact
def embedding_row(scene: Scene, edge: Edge) -> bool:
    """A float row that a Gather looks up in a constant table, on the way to a weighted operator."""
    index, maker = scene.index, scene.index.producers.get(edge.tensor)
    return (
        maker is not None
        and embedding(scene, maker)
        and index.is_float(edge.tensor)
        and edge.node not in tail_nodes(index)
    )


@edge_fact
def first_input(scene: Scene, edge: Edge) -> bool:
    """The first input slot of a node: the data of pooling, normalisation and activation operators."""
    return edge.slot == 0


@edge_fact
def computed_float(scene: Scene, edge: Edge) -> bool:
    """A float tensor of at least one dimension that is computed while the model runs, or fed to it."""
    index = scene.index
    return (
        index.is_float(edge.tensor)
        and not index.is_constant(edge.tensor)
        and index.rank(edge.tensor) != 0
    )


def find_pool_ends(index: GraphIndex, pool: Node) -> tuple[Edge, ...]:
    """Return the edges that a pool's result reaches through moves, that of a MaxPool through Concat too; none if it reaches an output or a body."""
    return _reached(
        index, pool.outputs[0], (*MOVES_VALUES, "Concat") if pool.op == "MaxPool" else MOVES_VALUES
    )


def _reached(index: GraphIndex, start: str, through: tuple[str, ...]) -> tuple[Edge, ...]:
    waiting, seen, ends = deque([start]), {start}, list[Edge]()
    while waiting:
        tensor = waiting.popleft()
        read = [edge for edge in index.edges_from(tensor) if index.node(edge).op != "Shape"]
        read_inside = any(slot < 0 for _, slot in index.consumers.get(tensor, ()))
        if tensor in index.outputs or read_inside or not read:
            return ()
        for edge in read:
            node = index.node(edge)
            if node.op not in through or (edge.slot and node.op != "Concat"):
                ends.append(edge)
            elif node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                waiting.append(node.outputs[0])
    return tuple(ends)
