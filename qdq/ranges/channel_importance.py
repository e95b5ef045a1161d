"""The importance of a tensor's channels to the layers that read it.

An error e of a channel of a layer's input, independent from value to value, changes the layer's
outputs by an expected square of e**2 times the sum of squares of the weights that multiply the
channel. A large error costs little in channels with small weights, and the range of the whole
tensor should not be chosen for them. Square errors are therefore weighed by channel, as the
expectation of the weight scales with weights and inputs exchanged. A depthwise layer only scales
its channels, so the weights of the layers after it count too.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from qdq.arrays import Array, Floats
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operands import input_channel_axis, reshape_by_channels
from qdq.graph.operators import PAIRWISE, SUMS

#: Channels of one grade have the same importance to within this factor.
GRADE_FACTOR = 4

#: The number of grades; the last one takes all channels of less importance.
GRADE_COUNT = 12

#: Operators that map each channel of their first input to the same channel of their output, with
#: values of about the same size.
_KEEPS_CHANNELS = frozenset((
    "AveragePool", "BatchNormalization", "Clip", "Dropout", "Elu", "Erf", "Gelu",
    "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu",
    "MaxPool", "Mish", "Neg", "Pad", "Relu", "Resize", "Sigmoid", "Softplus", "Tanh",
))  # fmt: skip

#: The default of BatchNormalization, and the inputs that it scales with.
_EPSILON = 1e-5
_SCALE_SLOT = 1
_VARIANCE_SLOT = 4


class ChannelGrades(msgspec.Struct, frozen=True):
    """The axis of a tensor's channels and the grade of each.

    The importance of grade g is FACTOR**-g of that of the most important channel.
    """

    axis: int
    of_channel: tuple[int, ...]


class _Importance(msgspec.Struct, frozen=True):
    """The axis of a tensor's channels and the importance of each."""

    axis: int
    of_channel: Floats

    @property
    def size(self) -> int:
        """The number of channels."""
        return self.of_channel.size

    def scaled(self, factor: Floats | float) -> _Importance:
        """Return the importance times a factor, of each channel or of all."""
        return _Importance(self.axis, self.of_channel * factor)


def channel_grades(index: CompilerView) -> dict[str, ChannelGrades]:
    """Return the grades of the tensors of one graph whose channels differ in importance."""
    by_tensor: dict[str, _Importance] = {}
    for node in reversed(index.nodes):
        for slot, importance in _measure_inputs(index, node, by_tensor):
            _add_importance(by_tensor, node.inputs[slot], importance)
    grades: dict[str, ChannelGrades] = {}
    for tensor, importance in by_tensor.items():
        of_channel = _grade_channels(importance.of_channel)
        if len(set(of_channel)) > 1:
            grades[tensor] = ChannelGrades(importance.axis, of_channel)
    return grades


def _add_importance(
    by_tensor: dict[str, _Importance], tensor: str, importance: _Importance
) -> None:
    """Add the importance to one reader of a tensor, where its readers agree on the channels."""
    known = by_tensor.get(tensor)
    if known is None:
        by_tensor[tensor] = importance
    elif known.axis == importance.axis and known.size == importance.size:
        total = known.of_channel + importance.of_channel
        by_tensor[tensor] = _Importance(known.axis, total)


def _grade_channels(importance: Floats) -> tuple[int, ...]:
    """Return the grade of each channel.

    All are of one grade where no channel has importance, or one has an infinite one.
    """
    largest = importance.max(initial=0.0)
    if not 0.0 < largest < np.inf:
        return (0,) * importance.size
    with np.errstate(divide="ignore"):
        distances = np.log2(largest) - np.log2(importance)
        grades = np.rint(distances / np.log2(GRADE_FACTOR))
    return tuple(np.minimum(grades, GRADE_COUNT - 1).astype(int).tolist())


def _measure_inputs(
    index: GraphIndex, node: Node, by_tensor: dict[str, _Importance]
) -> Iterator[tuple[int, _Importance]]:
    """Yield the slots of a node with the importance of their channels, where that is known.

    It follows from the node's weights or from its output.
    """
    output = by_tensor.get(node.outputs[0]) if node.outputs else None
    axis = _weighted_axis(index, node)
    if axis is not None:
        importance = _measure_weight(index, node, output)
        if importance is not None and axis >= 0:  # below 0 where the rank is not known
            yield 0, _Importance(axis, importance)
    elif output is None:
        return
    elif node.op in _KEEPS_CHANNELS:
        yield 0, _scale_by_normalization(index, node, output)
    elif node.op == "Concat":
        yield from _split_by_parts(index, node, output)
    elif node.op in PAIRWISE or node.op in SUMS:
        yield from _scale_by_operands(index, node, output)


def _weighted_axis(index: GraphIndex, node: Node) -> int | None:
    """Return the axis of a node's input channels, None for a node without a constant weight."""
    if len(node.inputs) <= 1:
        return None
    axis = input_channel_axis(index, node)
    if axis is None or not index.is_constant(node.inputs[1]):
        return None
    return axis


def _measure_weight(index: GraphIndex, node: Node, output: _Importance | None) -> Floats | None:
    """Return the sum of squares of the weights that multiply each input channel.

    In grouped layers each square counts by the importance of its output channel.
    """
    weight = np.asarray(index.constant(node.inputs[1]), np.float32)
    weight_by_channels = reshape_by_channels(node, weight)
    if weight_by_channels is None:
        return None
    group = int(node.attribute("group", 1))
    operands = (weight_by_channels, weight_by_channels)
    if group == 1:
        sums: Floats = np.einsum("oit,oit->i", *operands, dtype=np.float64)
        return sums
    squares = np.einsum("oit,oit->oi", *operands, dtype=np.float64)
    outputs = len(squares)
    if group < 1 or outputs % group:
        return None
    if group > 1 and output is not None and output.size == outputs:
        mean = output.of_channel.mean()
        if mean > 0.0:
            squares *= output.of_channel[:, None] / mean
    by_group = squares.reshape(group, outputs // group, squares.shape[1])
    importance: Floats = by_group.sum(axis=1).ravel()
    return importance


def _split_by_parts(
    index: GraphIndex, node: Node, output: _Importance
) -> Iterator[tuple[int, _Importance]]:
    """Yield each slot of a Concat with the importance of its channels."""
    rank = index.rank(node.outputs[0]) or 0
    if rank and int(node.attribute("axis", 0)) % rank != output.axis:
        for slot in range(len(node.inputs)):
            yield slot, output
        return
    sizes: list[int] = []
    for name in node.inputs:
        shape = index.shape(name)
        if not shape or len(shape) <= output.axis:
            return
        size = shape[output.axis]
        if size is None:
            return
        sizes.append(size)
    if sum(sizes) != output.size:
        return
    ends = np.cumsum(sizes)
    for slot, part in enumerate(np.split(output.of_channel, ends[:-1])):
        yield slot, _Importance(output.axis, part)


def _scale_by_operands(
    index: GraphIndex, node: Node, output: _Importance
) -> Iterator[tuple[int, _Importance]]:
    """Yield each computed slot of a sum or a pairwise operator, scaled by a constant operand."""
    rank = index.rank(node.outputs[0])
    for slot, name in enumerate(node.inputs):
        if not index.is_constant(name) and index.rank(name) == rank:
            factor = _constant_factor(index, node, slot, output)
            yield slot, output.scaled(factor)


def _constant_factor(
    index: GraphIndex, node: Node, slot: int, output: _Importance
) -> Floats | float:
    """Return the square of the factor of a Mul or Div for each channel, 1 where it is unknown."""
    is_factor = node.op == "Mul" or (node.op == "Div" and slot == 0)
    if not is_factor:
        return 1.0
    operand = node.inputs[1 - slot]
    if not index.is_constant(operand):
        return 1.0
    constant = np.asarray(index.constant(operand), np.float64)
    rank = index.rank(node.outputs[0]) or 0
    factor = _broadcast_channels(constant, rank, output)
    if factor is None or not np.isfinite(factor).all():
        return 1.0
    with np.errstate(divide="ignore"):
        squares = factor**2
        if node.op == "Div":
            squares = 1.0 / squares
    return squares if np.isfinite(squares).all() else 1.0


def _broadcast_channels(constant: Array, rank: int, output: _Importance) -> Floats | None:
    """Return a constant as one number or one per channel, None where other axes differ in it."""
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if len(shape) != rank or shape[output.axis] not in (1, output.size):
        return None
    for axis, size in enumerate(shape):
        if axis != output.axis and size != 1:
            return None
    return constant.ravel()


def _scale_by_normalization(index: GraphIndex, node: Node, output: _Importance) -> _Importance:
    """Return the importance of a node's input, scaled where it is a BatchNormalization."""
    if node.op != "BatchNormalization":
        return output
    parameters: list[Floats] = []
    for slot in (_SCALE_SLOT, _VARIANCE_SLOT):
        name = node.inputs[slot]
        if not index.is_constant(name):
            return output
        parameters.append(np.asarray(index.constant(name), np.float64))
    scale, variance = parameters
    epsilon = node.attribute("epsilon", _EPSILON)
    factor: Floats = scale**2 / (np.maximum(variance, 0.0) + epsilon)
    return output.scaled(factor) if factor.size == output.size else output
