"""The channels that may be scaled in a graph: from the weights that compute them to the readers.

A factor above 0 of a channel passes every operator f with f(s * x) = s * f(x), such as Relu. The
layers before multiply their output channels by it, the layers after divide their input channels
(Nagel et al., arXiv:1906.04721, section 4.1; Xiao et al., arXiv:2211.10438, section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Node
from qdq.graph.operands import operands
from qdq.graph.operators import ALIASES, CONVOLUTIONS, MATRIX_PRODUCTS, MOVES_VALUES, POOLS
from qdq.graph.patterns import is_spatial_mean
from qdq.recovery.channel_layout import (
    UNSCALED,
    ChannelClasses,
    ChannelLayout,
    Channels,
    move_layout,
)
from qdq.recovery.homogeneous_operators import is_homogeneous
from qdq.recovery.product_axes import ProductAxes, find_product_axes
from qdq.recovery.stored_weights import StoredWeights

_CHANNEL_AXIS = 1
_WEIGHT_SLOT = 1
_BIAS_SLOT = 2

#: The most tensors that a normalization layer reads or writes where it does not train.
_DATA_AND_PARAMETERS = 3


class WeightChannels(msgspec.Struct, frozen=True, eq=False):
    """The channels along an axis of a stored weight."""

    tensor: str
    axis: int
    groups: int
    channels: Channels
    #: Whether the weight is multiplied by the factors; it is divided otherwise.
    is_producer: bool


class ChannelReader(msgspec.Struct, frozen=True, eq=False):
    """A layer that multiplies scaled channels of a tensor with a weight."""

    node: Node
    axes: ProductAxes
    layout: ChannelLayout

    @property
    def tensor(self) -> str:
        """The tensor whose channels are scaled."""
        name: str = self.node.inputs[0]
        return name


class ChannelFlow:
    """The channels of the main graph that may be scaled, and the weights that absorb factors."""

    def __init__(self, index: CompilerView) -> None:
        self.index = index
        self.classes = ChannelClasses()
        self.layouts: dict[str, ChannelLayout] = {}
        self.weights: list[WeightChannels] = []
        self.readers: list[ChannelReader] = []
        self._stored = StoredWeights(index)
        for node in index.nodes:
            self._pass_node(node)
        for tensor in index.outputs:
            self._stop(tensor)

    def _pass_node(self, node: Node) -> None:
        index = self.index
        if not index.is_live(node) or not node.outputs or index.is_constant(node.outputs[0]):
            return
        for tensor in node.captured:
            self._stop(tensor)
        handler = _HANDLERS.get(node.op)
        if handler is not None:
            handler(self, node)
        elif node.inputs and is_homogeneous(index, node):
            self._pass_first(node)
        else:
            self._stop_all(node)

    def _stop(self, tensor: str) -> None:
        """Leave the channels of a tensor as they are."""
        layout = self.layouts.get(tensor)
        if layout is not None:
            self.classes.leave_unscaled(layout.channels)

    def _stop_all(self, node: Node) -> None:
        for tensor in node.inputs:
            self._stop(tensor)

    def _pass_first(self, node: Node) -> None:
        """Pass the channels of the first input on; those of others have the factor 1."""
        tensor, *others = node.inputs
        for other in others:
            self._stop(other)
        layout = self.layouts.get(tensor)
        if layout is None:
            return
        if not self._keeps_channels(node, layout):
            self._stop(tensor)
        else:
            self.layouts[node.outputs[0]] = layout

    def _keeps_channels(self, node: Node, layout: ChannelLayout) -> bool:
        """Whether the output of a node has the axes and the channels of a layout."""
        if node.op in (*POOLS, "Pad") or is_spatial_mean(self.index, node):
            return layout.axis == _CHANNEL_AXIS
        shape = self.index.shape(node.outputs[0])
        if shape is None or layout.axis >= len(shape):
            return False
        return shape[layout.axis] == layout.channels.size

    def _pass_moved(self, node: Node) -> None:
        tensor = node.inputs[0]
        layout = self.layouts.get(tensor)
        if layout is None:
            return
        moved = move_layout(self.index, node, layout)
        if moved is None:
            self._stop(tensor)
        else:
            self.layouts[node.outputs[0]] = moved

    def _pass_product(self, node: Node) -> None:
        """Divide the input channels of a weighted layer, and multiply its output channels."""
        axes = find_product_axes(self.index, node) if operands(self.index, node) else None
        if axes is None:
            self._stop_all(node)
            return
        self._add_reader(node, axes)
        weight = self._locate(node.inputs[_WEIGHT_SLOT], axes.outputs, axes.output_groups)
        if weight is None:
            return
        channels = self.classes.add(axes.output_count)
        producers = [WeightChannels(*weight, axes.output_groups, channels, is_producer=True)]
        if len(node.inputs) > _BIAS_SLOT and node.inputs[_BIAS_SLOT]:
            bias = self._absorb_constant(node.inputs[_BIAS_SLOT], -1, channels)
            if bias is None:
                return
            producers += bias
        self.weights += producers
        self.layouts[node.outputs[0]] = ChannelLayout(axes.result, channels)

    def _add_reader(self, node: Node, axes: ProductAxes) -> None:
        layout = self.layouts.get(node.inputs[0])
        if layout is None:
            return
        weight = self._locate(node.inputs[_WEIGHT_SLOT], axes.summed, axes.summed_groups)
        has_channels = layout.axis == axes.data and layout.channels.size == axes.summed_count
        if weight is None or not has_channels:
            self._stop(node.inputs[0])
            return
        groups = axes.summed_groups
        self.weights.append(WeightChannels(*weight, groups, layout.channels, is_producer=False))
        self.readers.append(ChannelReader(node, axes, layout))

    def _locate(self, tensor: str, axis: int, groups: int) -> tuple[str, int] | None:
        """Return the stored tensor and the axis of a weight.

        None where it cannot be scaled, and for one in groups that is not stored as it is read.
        """
        location = self._stored.locate(tensor, axis)
        if groups > 1 and location != (tensor, axis):
            return None
        return location

    def _absorb_constant(
        self, tensor: str, axis: int, channels: Channels
    ) -> list[WeightChannels] | None:
        """Return the weights that multiply a constant operand by the factors of channels.

        `axis` counts from the last axis of the result, as a negative number. The list is empty for
        zeros. None where the constant cannot be multiplied.
        """
        if not self.index.is_constant(tensor):
            return None
        if self._stored.is_zero(tensor):
            return []
        shape = self.index.shape(tensor)
        if shape is None or -axis > len(shape) or shape[axis] != channels.size:
            return None
        location = self._stored.locate(tensor, len(shape) + axis)
        if location is None:
            return None
        return [WeightChannels(*location, 1, channels, is_producer=True)]

    def _pass_normalization(self, node: Node) -> None:
        """Multiply the scale and bias of a normalization; its input has the factor 1."""
        self._stop_all(node)
        axis = self._normalized_axis(node)
        parameters = [name for name in node.inputs[1:_DATA_AND_PARAMETERS] if name]
        shape = self.index.shape(parameters[0]) if axis is not None and parameters else None
        if axis is None or shape is None or len(shape) != 1 or not shape[0]:
            return
        self._add_producers(node, axis, shape[0], parameters, -1)

    def _normalized_axis(self, node: Node) -> int | None:
        """Return the axis of the channels that a normalization scales, None for other forms."""
        used = [name for name in node.outputs if name]
        if node.op != "LayerNormalization":
            return _CHANNEL_AXIS if len(used) == 1 else None
        rank = self.index.rank(node.outputs[0]) or 0
        is_last = rank > 0 and node.attribute("axis", -1) in (-1, rank - 1)
        return rank - 1 if is_last else None

    def _add_producers(
        self, node: Node, axis: int, count: int, constants: list[str], constant_axis: int
    ) -> bool:
        """Add new channels to the output of a node, by constants that are multiplied by them."""
        channels = self.classes.add(count)
        producers: list[WeightChannels] = []
        for tensor in constants:
            absorbed = self._absorb_constant(tensor, constant_axis, channels)
            if absorbed is None:
                return False
            producers += absorbed
        self.weights += producers
        self.layouts[node.outputs[0]] = ChannelLayout(axis, channels)
        return True

    def _pass_factor(self, node: Node) -> None:
        """Pass a Mul: its constant of one value per channel is multiplied, or it is a factor."""
        constants = [name for name in node.inputs if self.index.is_constant(name)]
        scaled = [name for name in node.inputs if name in self.layouts]
        if len(constants) == 1 and self._scale_vector(node, constants[0]):
            self._stop_all(node)
        elif len(scaled) == 1 and self._keeps_channels(node, self.layouts[scaled[0]]):
            self.layouts[node.outputs[0]] = self.layouts[scaled[0]]
        else:
            self._stop_all(node)

    def _scale_vector(self, node: Node, constant: str) -> bool:
        """Let a constant of one value per channel absorb the factors of a Mul's output."""
        shape = self.index.shape(constant) or ()
        rank = self.index.rank(node.outputs[0]) or 0
        axes = [axis - len(shape) for axis, size in enumerate(shape) if size != 1]
        if len(axes) != 1 or not rank:
            return False
        count = shape[axes[0]] or 0
        return self._add_producers(node, rank + axes[0], count, [constant], axes[0])

    def _pass_quotient(self, node: Node) -> None:
        dividend = node.inputs[0]
        self._stop(node.inputs[1])
        layout = self.layouts.get(dividend)
        if layout is None or node.inputs[1] == dividend:
            return
        if self._keeps_channels(node, layout):
            self.layouts[node.outputs[0]] = layout
        else:
            self._stop(dividend)

    def _pass_sum(self, node: Node) -> None:
        """Pass a sum or an extremum: all operands have the factors of the result."""
        computed = [name for name in node.inputs if not self.index.is_constant(name)]
        layouts = [self.layouts[name] for name in computed if name in self.layouts]
        producers = self._join_operands(node, layouts) if len(layouts) == len(computed) else None
        if producers is None:
            self._stop_all(node)
            return
        self.weights += producers
        self.layouts[node.outputs[0]] = layouts[0]

    def _join_operands(
        self, node: Node, layouts: list[ChannelLayout]
    ) -> list[WeightChannels] | None:
        """Join the channels of the operands; return the constants that have to be multiplied."""
        if not layouts or not self._keeps_channels(node, layouts[0]):
            return None
        axis, channels = layouts[0].axis, layouts[0].channels
        rank = self.index.rank(node.outputs[0]) or 0
        producers: list[WeightChannels] = []
        for name in node.inputs:
            layout = self.layouts.get(name)
            if layout is not None:
                if self.index.rank(name) != rank or layout.axis != axis:
                    return None
                if layout.channels.size != channels.size:
                    return None
                continue
            absorbed = self._absorb_constant(name, axis - rank, channels)
            if absorbed is None:
                return None
            producers += absorbed
        for layout in layouts[1:]:
            self.classes.join(channels, layout.channels)
        return producers

    def _pass_concatenation(self, node: Node) -> None:
        """Pass a Concat of channels, some of which may have the factor 1."""
        rank = self.index.rank(node.outputs[0]) or 0
        axis = int(node.attribute("axis", 1)) % rank if rank else -1
        parts: list[Channels] = []
        for name in node.inputs:
            layout = self.layouts.get(name)
            shape = self.index.shape(name)
            size = shape[axis] if shape is not None and axis >= 0 else None
            if layout is not None and layout.axis == axis:
                parts.append(layout.channels)
            elif layout is None and size is not None:
                parts.append(np.full(size, UNSCALED, np.int64))
            else:
                self._stop_all(node)
                return
        channels = np.concatenate(parts)
        if channels.any():
            self.layouts[node.outputs[0]] = ChannelLayout(axis, channels)


_Handler = Callable[[ChannelFlow, Node], None]

_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys((*CONVOLUTIONS, *MATRIX_PRODUCTS), ChannelFlow._pass_product),
    **dict.fromkeys(MOVES_VALUES, ChannelFlow._pass_moved),
    **dict.fromkeys(ALIASES, ChannelFlow._pass_first),
    **dict.fromkeys(
        ("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
        ChannelFlow._pass_normalization,
    ),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min"), ChannelFlow._pass_sum),
    "Mul": ChannelFlow._pass_factor,
    "Div": ChannelFlow._pass_quotient,
    "Concat": ChannelFlow._pass_concatenation,
}
