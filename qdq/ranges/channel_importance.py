"""How much the channels of a tensor matter to the layers that read it.

Where a channel of a layer's input is off by an error e that is independent from value to value, the expected square by which
the layer's outputs are off is e**2 times the sum of squares of the weights that multiply the channel. An error that is
large in channels with small weights costs little, and the range that serves the whole tensor should not be chosen for it: so
square errors are weighed channel by channel: the expectation of qdq/weights.py with the roles of weights and inputs
exchanged. A depthwise layer only scales its channels, so there the weights of the layers behind count too.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from qdq.arrays import Array, Floats
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operands import input_channel_axis, reshape_by_channels
from qdq.graph.operators import PAIRWISE

#: Channels of one grade matter alike to within this factor; the last grade takes all that matter still less.
GRADE_FACTOR, GRADE_COUNT = 4, 12

#: Operators that give each channel of their first input to the same channel of their output, neither larger nor smaller by much.
_KEEPS_CHANNELS = frozenset((
    "AveragePool", "BatchNormalization", "Clip", "Dropout", "Elu", "Erf", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "MaxPool", "Mish", "Neg", "Pad", "Relu", "Resize", "Sigmoid", "Softplus", "Tanh",
))  # fmt: skip
_EPSILON = 1e-5


class ChannelGrades(msgspec.Struct, frozen=True):
    """The axis of a tensor's channels, and the grade of each: grade g matters FACTOR**-g as much as the most important."""

    axis: int
    of_channel: tuple[int, ...]


class _Importance(msgspec.Struct, frozen=True):
    axis: int
    of_channel: Floats


def channel_grades(index: GraphIndex) -> dict[str, ChannelGrades]:
    """Return the grades of the tensors of one graph whose channels matter differently to the layers behind."""
    found: dict[str, _Importance] = {}
    for node in reversed(index.nodes):
        for slot, importance in _of_inputs(index, node, found):
            known = found.get(node.inputs[slot])
            if known is None:
                found[node.inputs[slot]] = importance
            elif (
                known.axis == importance.axis
                and known.of_channel.size == importance.of_channel.size
            ):
                found[node.inputs[slot]] = _Importance(
                    known.axis, known.of_channel + importance.of_channel
                )
    grades = {
        tensor: ChannelGrades(importance.axis, _graded(importance.of_channel))
        for tensor, importance in found.items()
    }
    return {tensor: given for tensor, given in grades.items() if len(set(given.of_channel)) > 1}


def _graded(importance: Floats) -> tuple[int, ...]:
    """Return the grade of each channel; all are of one grade where none matters, or one matters beyond measure."""
    most = importance.max(initial=0.0)
    if not 0.0 < most < np.inf:
        return (0,) * importance.size
    with np.errstate(divide="ignore"):
        grades = np.rint((np.log2(most) - np.log2(importance)) / np.log2(GRADE_FACTOR))
    return tuple(np.minimum(grades, GRADE_COUNT - 1).astype(int).tolist())


def _of_inputs(
    index: GraphIndex, node: Node, found: dict[str, _Importance]
) -> Iterator[tuple[int, _Importance]]:
    """Yield the inputs of a node whose channels' importance follows from its weights or its output."""
    out = found.get(node.outputs[0]) if node.outputs else None
    axis = input_channel_axis(index, node) if len(node.inputs) > 1 else None
    if axis is not None and index.is_constant(node.inputs[1]):
        importance = _of_weight(index, node, out)
        if importance is not None and axis >= 0:  # below 0 where the rank is not known
            yield 0, _Importance(axis, importance)
    elif out is None:
        return
    elif node.op in _KEEPS_CHANNELS:
        factor = _batch_normalization(index, node) if node.op == "BatchNormalization" else None
        yield (
            0,
            out
            if factor is None or factor.size != out.of_channel.size
            else _Importance(out.axis, out.of_channel * factor),
        )
    elif node.op == "Concat":
        yield from _of_parts(index, node, out)
    elif node.op in PAIRWISE:
        for slot in (slot for slot, name in enumerate(node.inputs) if not index.is_constant(name)):
            if index.rank(node.inputs[slot]) == index.rank(node.outputs[0]):
                yield (
                    slot,
                    _Importance(
                        out.axis, out.of_channel * _constant_factor(index, node, slot, out)
                    ),
                )


def _of_weight(index: GraphIndex, node: Node, out: _Importance | None) -> Floats | None:
    """Return the sum of squares of the weights that multiply each input channel; of grouped layers, each times its output's importance."""
    shaped = reshape_by_channels(node, np.asarray(index.constant(node.inputs[1]), np.float32))
    if shaped is None:
        return None
    squares, group = (
        np.einsum("oit,oit->oi", shaped, shaped, dtype=np.float64),
        int(node.attribute("group", 1)),
    )
    if len(squares) % group:
        return None
    if (
        group > 1
        and out is not None
        and out.of_channel.size == len(squares)
        and (mean := out.of_channel.mean()) > 0.0
    ):
        squares *= out.of_channel[:, None] / mean
    importance: Floats = squares.reshape(group, len(squares) // group, -1).sum(axis=1).ravel()
    return importance


def _of_parts(index: GraphIndex, node: Node, out: _Importance) -> Iterator[tuple[int, _Importance]]:
    """Yield to each input of a Concat the channels that it gives."""
    rank = index.rank(node.outputs[0]) or 0
    shapes = [index.shape(name) for name in node.inputs]
    if rank and int(node.attribute("axis", 0)) % rank != out.axis:
        yield from ((slot, out) for slot in range(len(node.inputs)))
        return
    sizes = [shape[out.axis] if shape and len(shape) > out.axis else None for shape in shapes]
    if None in sizes or sum(size or 0 for size in sizes) != out.of_channel.size:
        return
    ends = np.cumsum([size or 0 for size in sizes])
    for slot, part in enumerate(np.split(out.of_channel, ends[:-1])):
        yield slot, _Importance(out.axis, part)


def _constant_factor(index: GraphIndex, node: Node, slot: int, out: _Importance) -> Floats | float:
    """Return the square of what a Mul or Div multiplies each channel with, 1 where that is not known."""
    other = node.inputs[1 - slot]
    if (
        node.op not in ("Mul", "Div")
        or not index.is_constant(other)
        or (node.op == "Div" and slot == 1)
    ):
        return 1.0
    factor = _along(
        np.asarray(index.constant(other), np.float64), index.rank(node.outputs[0]) or 0, out
    )
    if factor is None or not np.isfinite(factor).all():
        return 1.0
    with np.errstate(divide="ignore"):
        squares = factor**2 if node.op == "Mul" else 1.0 / factor**2
    return squares if np.isfinite(squares).all() else 1.0


def _along(constant: Array, rank: int, out: _Importance) -> Floats | None:
    """Return a constant as one number for each channel, None where it differs along other axes too."""
    shape = (1,) * (rank - constant.ndim) + constant.shape
    across = [size for axis, size in enumerate(shape) if axis != out.axis]
    if (
        len(shape) != rank
        or any(size != 1 for size in across)
        or shape[out.axis] not in (1, out.of_channel.size)
    ):
        return None
    return constant.ravel()


def _batch_normalization(index: GraphIndex, node: Node) -> Floats | None:
    if not all(index.is_constant(node.inputs[slot]) for slot in (1, 4)):
        return None
    scale, variance = (np.asarray(index.constant(node.inputs[slot]), np.float64) for slot in (1, 4))
    factor: Floats = scale**2 / (np.maximum(variance, 0.0) + node.attribute("epsilon", _EPSILON))
    return factor
