"""The facts that rules are written in: pure functions of the graph, documented by their docstrings.

A fact about nodes is used under `from` and `into`, a fact about edges under `edge`.
"""

from __future__ import annotations

from qdq.graph.aliases import find_producer_before_casts, find_tensor_before_casts
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.layer_shapes import (
    Channels,
    attention_length,
    convolution_channels,
    kernel_shape,
    layers_to_output,
    product_rows,
    product_sizes,
    reads_graph_input,
)
from qdq.graph.operands import is_operand, operands
from qdq.graph.operators import (
    ACTIVATIONS,
    MATRIX_PRODUCTS,
    MOVES_VALUES,
    QUANTIZABLE_POOLS,
    SUMS,
)
from qdq.graph.patterns import (
    attention_masks,
    can_commute_with_quantization,
    find_gate,
    find_producer_before_moves,
    gelu_nodes,
    is_average,
    is_channel_gate,
    multiplied_tensors,
    normalization_nodes,
    tail_nodes,
)
from qdq.graph.residual import find_residual, is_skip
from qdq.rules.block_facts import BLOCK_FACTS
from qdq.rules.fact_registry import (
    EDGE_FACTS,
    NODE_FACTS,
    Scene,
    edge_fact,
    fact_parameters,
    node_fact,
)
from qdq.rules.float_facts import FLOAT_FACTS
from qdq.rules.kernel_tables import explain_missing_kernel
from qdq.rules.reached_edges import find_pool_ends, find_reached_edges

__all__ = ["BLOCK_FACTS", "EDGE_FACTS", "FLOAT_FACTS", "NODE_FACTS", "Scene", "fact_parameters"]

#: The smallest window of a grouped convolution with a fast kernel.
_LEAST_GROUPED_WINDOW = 3


@node_fact
def weighted(scene: Scene, node: Node) -> bool:
    """A Conv, ConvTranspose, Gemm, MatMul, Einsum that is a matrix product, LSTM, GRU or RNN.

    Its operands are float, and at least one of them is computed.
    """
    return bool(operands(scene.index, node))


@node_fact
def averaging_pool(scene: Scene, node: Node) -> bool:
    """An AveragePool, GlobalAveragePool or spatial ReduceMean.

    Its output goes only into weighted operators.
    """
    index = scene.index
    if not is_average(index, node):
        return False
    readers = find_pool_ends(index, node)
    if not readers:
        return False
    return all(is_operand(index, edge) for edge in readers)


@node_fact
def max_pool_beside_weighted(scene: Scene, node: Node) -> bool:
    """A MaxPool whose input is multiplied by a weighted operator too.

    Its output goes only into weighted operators and pools, directly or through a Concat.
    """
    index = scene.index
    if node.op != "MaxPool":
        return False
    if find_tensor_before_casts(index, node.inputs[0]) not in multiplied_tensors(index):
        return False
    readers = find_pool_ends(index, node)
    if not readers:
        return False
    return all(_is_quantizable(index, edge) for edge in readers)


def _is_quantizable(index: GraphIndex, edge: Edge) -> bool:
    if is_operand(index, edge):
        return True
    node = index.node(edge)
    return node.op in QUANTIZABLE_POOLS


@node_fact
def unfused_batch_normalization(scene: Scene, node: Node) -> bool:
    """A BatchNormalization whose data is not computed by a weighted operator.

    It is therefore not folded into one.
    """
    index = scene.index
    if node.op != "BatchNormalization":
        return False
    data = node.inputs[0]
    if index.is_constant(data):
        return False
    producer = find_producer_before_moves(index, data)
    return producer is None or not operands(index, producer)


@node_fact
def lacks_int8_kernel(scene: Scene, node: Node) -> bool:
    """A layer that has no INT8 kernel on one of the plan's targets, according to its kernel table.

    Includes an Add that is fused with such a layer, and an unfused BatchNormalization that feeds
    only such layers.
    """
    index = scene.index
    if node.op in SUMS:
        residual = find_residual(index, node)
        return residual is not None and lacks_int8_kernel(scene, residual.backbone)
    if unfused_batch_normalization(scene, node):
        return _feeds_only_float_layers(scene, node)
    float_type = scene.float_type
    for target in scene.targets:
        if explain_missing_kernel(index, node, target, float_type=float_type):
            return True
    return False


def _feeds_only_float_layers(scene: Scene, node: Node) -> bool:
    index = scene.index
    through = (*MOVES_VALUES, *ACTIVATIONS)
    readers = find_reached_edges(index, node.outputs[0], through)
    for edge in readers:
        reader = index.node(edge)
        if not lacks_int8_kernel(scene, reader):
            return False
    return bool(readers)


@node_fact
def commutes_with_quantization(scene: Scene, node: Node) -> bool:
    """An operator that moves, selects or repeats values.

    Examples: Reshape, Transpose, Slice, Split, MaxPool, nearest-neighbour Resize, Pad with zeros.
    """
    return can_commute_with_quantization(scene.index, node)


@node_fact
def normalization(scene: Scene, node: Node) -> bool:
    """LayerNormalization and its relatives, also each node of one that is decomposed.

    A decomposed one consists of means, squares, a root and a division.
    """
    return node.label in normalization_nodes(scene.index)


@node_fact
def gelu(scene: Scene, node: Node) -> bool:
    """Gelu, also each node of one that is written with Erf or with Tanh."""
    return node.label in gelu_nodes(scene.index)


@node_fact
def gate(scene: Scene, node: Node) -> bool:
    """The Mul of a value by a Sigmoid or HardSigmoid, in every form.

    Examples: SiLU, hard swish, gated units, squeeze-and-excite.
    """
    return find_gate(scene.index, node) is not None


@node_fact
def squeeze_excite(scene: Scene, node: Node) -> bool:
    """The Mul of a feature map by a gate that holds one value per channel."""
    return is_channel_gate(scene.index, node)


@node_fact
def attention_mask(scene: Scene, node: Node) -> bool:
    """The Add of a mask or a bias to attention scores, before their Softmax."""
    return node.label in attention_masks(scene.index)


@node_fact
def embedding(scene: Scene, node: Node) -> bool:
    """A Gather of rows of a constant table by computed indices."""
    if node.op != "Gather":
        return False
    index = scene.index
    table, indices = node.inputs[:2]
    return index.is_constant(table) and not index.is_constant(indices)


@node_fact
def behind_the_last_weighted(scene: Scene, node: Node) -> bool:
    """A node whose output reaches no weighted operator.

    Examples: the decoding of detection heads, final activations, scores.
    """
    return node.label in tail_nodes(scene.index)


@node_fact
def near_output(scene: Scene, node: Node, *, layers_at_most: float) -> bool:
    """A weighted operator among the last `layers-at-most` before a graph output.

    They are counted along the shortest path.
    """
    if not operands(scene.index, node):
        return False
    distances = layers_to_output(scene.index)
    distance = distances.get(node.label)
    return distance is not None and distance <= layers_at_most


@node_fact
def narrow_convolution(
    scene: Scene, node: Node, *, channels_below: float, multiple_of: float
) -> bool:
    """A Conv with few channels that has no fast kernel.

    It has fewer than `channels-below` input channels (of one group) or output channels.
    Excluded are the forms with a fast kernel. Without groups: the inputs or the outputs are a
    multiple of `multiple-of`, the kernel is square, and one side has `channels-below` channels or
    the data is a graph input. With groups: the outputs are a multiple of `multiple-of` and the
    kernel is at least 3 wide.
    """
    channels = convolution_channels(scene.index, node)
    if channels is None:
        return False
    inputs = channels.inputs
    outputs = channels.outputs
    if outputs >= channels_below and inputs >= channels_below:
        return False
    kernel = kernel_shape(scene.index, node)
    has_even_outputs = outputs % multiple_of == 0
    if channels.groups > 1:
        is_small = any(size < _LEAST_GROUPED_WINDOW for size in kernel)
        return is_small or not has_even_outputs
    has_even_side = has_even_outputs or inputs % multiple_of == 0
    is_square = len(set(kernel)) <= 1
    if not has_even_side or not is_square:
        return True
    is_wide = max(outputs, inputs) >= channels_below
    return not is_wide and not reads_graph_input(scene.index, node)


@node_fact
def uneven_groups(scene: Scene, node: Node, *, multiple_of: float) -> bool:
    """A grouped Conv or ConvTranspose, not depthwise, with uneven groups.

    The input channels or the output channels of a group are no multiple of `multiple-of`.
    """
    channels = convolution_channels(scene.index, node)
    if channels is None or channels.groups == 1 or _is_depthwise(channels):
        return False
    outputs_per_group = channels.outputs // channels.groups
    has_even_inputs = channels.inputs % multiple_of == 0
    has_even_outputs = outputs_per_group % multiple_of == 0
    return not has_even_inputs or not has_even_outputs


def _is_depthwise(channels: Channels) -> bool:
    return channels.inputs == 1 and channels.outputs == channels.groups


@node_fact
def small_product(scene: Scene, node: Node, *, size_below: float) -> bool:
    """A Gemm or MatMul that sums over fewer than `size-below` values, or makes shorter rows."""
    sizes = product_sizes(scene.index, node)
    return sizes is not None and min(sizes) < size_below


@node_fact
def vector_product(scene: Scene, node: Node) -> bool:
    """A Gemm or MatMul of a single row: a matrix-vector product.

    The row count follows from the shapes in the model or of --shapes.
    """
    return product_rows(scene.index, node) == 1


@node_fact
def long_attention(scene: Scene, node: Node, *, length_above: float) -> bool:
    """One of the two products of an attention over more than `length-above` positions.

    The length follows from the shapes in the model or of --shapes.
    """
    length = attention_length(scene.index, node)
    return length is not None and length > length_above


@edge_fact
def computed_operand(scene: Scene, edge: Edge) -> bool:
    """An operand of a weighted operator that is computed at run time."""
    index = scene.index
    return not index.is_constant(edge.tensor) and is_operand(index, edge)


@edge_fact
def constant_operand(scene: Scene, edge: Edge) -> bool:
    """An operand of a weighted operator that is known from the file: its weight."""
    index = scene.index
    return index.is_constant(edge.tensor) and is_operand(index, edge)


@edge_fact
def residual_branch(scene: Scene, edge: Edge) -> bool:
    """An operand of a residual Add or Sum other than the convolution that TensorRT fuses with it.

    A sum of more than two tensors has several, also as Adds after each other.
    """
    index = scene.index
    return is_skip(index, index.node(edge), edge.slot)


@edge_fact
def residual_product_branch(scene: Scene, edge: Edge) -> bool:
    """An operand of a residual Add or Sum other than the Gemm or MatMul before it.

    A weighted operator multiplies the operand's tensor too. The computed C of a Gemm is one.
    """
    index = scene.index
    node = index.node(edge)
    if find_residual(index, node) is not None:
        return False
    if not is_skip(index, node, edge.slot, MATRIX_PRODUCTS):
        return False
    return find_tensor_before_casts(index, edge.tensor) in multiplied_tensors(index)


@edge_fact
def constant_table(scene: Scene, edge: Edge) -> bool:
    """A table of float constants on the path to a weighted operator.

    Neither its weight nor a bias, which has one value per channel. A table has several rows and
    columns; an input of a Concat only needs several values.
    """
    index = scene.index
    tensor = edge.tensor
    if not index.is_constant(tensor) or not index.is_float(tensor):
        return False
    if is_operand(index, edge) or edge.node in tail_nodes(index):
        return False
    shape = index.shape(tensor) or ()
    dimensions = sum(size != 1 for size in shape)
    node = index.node(edge)
    if node.op == "Concat":
        return dimensions >= 1
    return dimensions > 1


@edge_fact
def embedding_row(scene: Scene, edge: Edge) -> bool:
    """A float row, perhaps cast, that a Gather reads from a table, before a weighted operator."""
    index = scene.index
    producer = find_producer_before_casts(index, edge.tensor)
    if producer is None or not embedding(scene, producer):
        return False
    return index.is_float(edge.tensor) and edge.node not in tail_nodes(index)


@edge_fact
def first_input(scene: Scene, edge: Edge) -> bool:
    """The first input of a node: the data of pooling, normalization and activation operators."""
    return edge.slot == 0


@edge_fact
def computed_float(scene: Scene, edge: Edge) -> bool:
    """A float tensor of at least one dimension that is computed at run time or is a graph input."""
    index = scene.index
    if index.is_constant(edge.tensor) or index.rank(edge.tensor) == 0:
        return False
    return index.is_float(edge.tensor)
