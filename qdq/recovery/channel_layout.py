"""Where the channels of a tensor are, and which channels of a graph have one factor.

Each channel that a layer computes has a number. Channels that one operator adds up have one factor,
so they form a class (union-find, Tarjan, J. ACM 22(2), 1975). The class of number 0 has factor 1.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from qdq.graph.index import GraphIndex, Node

#: Numbers of channels, or of their classes.
Channels = npt.NDArray[np.int64]

#: The number of the channels whose factor is 1.
UNSCALED = 0


class ChannelLayout(msgspec.Struct, frozen=True, eq=False):
    """The axis of a tensor's channels, and the channel at each position of it."""

    axis: int
    channels: Channels


class ChannelClasses:
    """Channels that have one factor, as classes."""

    def __init__(self) -> None:
        self._parents = [UNSCALED]
        self._roots: Channels | None = None

    def add(self, count: int) -> Channels:
        """Return new channels, each a class of its own."""
        self._roots = None
        first = len(self._parents)
        numbers = range(first, first + count)
        self._parents.extend(numbers)
        return np.array(numbers, np.int64)

    def join(self, channels: Channels, others: Channels) -> None:
        """Join the classes of channels pairwise."""
        self._roots = None
        for channel, other in zip(channels.tolist(), others.tolist(), strict=True):
            roots = sorted((self._root(channel), self._root(other)))
            self._parents[roots[1]] = roots[0]

    def leave_unscaled(self, channels: Channels) -> None:
        """Give channels the factor 1."""
        self.join(channels, np.zeros_like(channels))

    def roots(self, channels: Channels) -> Channels:
        """Return the first channel of the class of each channel, 0 for a factor of 1."""
        if self._roots is None:
            self._roots = self._find_roots()
        return self._roots[channels]

    def _find_roots(self) -> Channels:
        """Return the first channel of the class of every channel."""
        parents: Channels = np.array(self._parents, np.int64)
        while True:
            grandparents = parents[parents]
            if np.array_equal(grandparents, parents):
                return parents
            parents = grandparents

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel


def move_layout(index: GraphIndex, node: Node, layout: ChannelLayout) -> ChannelLayout | None:
    """Return the layout of the output of an operator that only moves values.

    None where the shapes do not decide it.
    """
    if node.op == "Transpose":
        rank = index.rank(node.inputs[0]) or 0
        order = list(node.attribute("perm", reversed(range(rank))))
        if layout.axis not in order:
            return None
        return ChannelLayout(order.index(layout.axis), layout.channels)
    input_shape = index.shape(node.inputs[0])
    output_shape = index.shape(node.outputs[0])
    if input_shape is None or output_shape is None:
        return None
    return _reshape(layout, input_shape[layout.axis + 1 :], output_shape)


def _reshape(
    layout: ChannelLayout, inner_sizes: tuple[int | None, ...], shape: tuple[int | None, ...]
) -> ChannelLayout | None:
    """Return the layout after a change of shape that keeps the order of values.

    `inner_sizes` are the dimensions after the channel axis, which may become part of that axis.
    """
    known_sizes = [size for size in inner_sizes if size is not None]
    if len(known_sizes) < len(inner_sizes):
        return None
    values_per_channel = math.prod(known_sizes)
    count = layout.channels.size * values_per_channel
    inner_count = 1
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        if not size:
            return None
        if size * inner_count == count and values_per_channel % inner_count == 0:
            repeats = values_per_channel // inner_count
            return ChannelLayout(axis, np.repeat(layout.channels, repeats))
        inner_count *= size
    return None
