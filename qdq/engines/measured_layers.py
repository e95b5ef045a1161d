"""The operands and attributes of the layer that a form describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from qdq.engines.layer_forms import FullForm

#: Length of each side of a wide plane, by spatial rank.
_SIDE = {1: 64, 2: 16, 3: 8}

#: Length of the sequence that a recurrent layer reads.
_STEPS = 8

_GEMM_ATTRIBUTES = ("transA", "transB", "alpha", "beta")
_GROUP_COUNTS = {"none": 1, "grouped": 2}

#: Gates of each recurrent operator, which its weights hold one after another.
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

#: Shape of the batch that both operands, or one alone, have.
_BATCHES: Mapping[str, tuple[int, ...]] = {
    "none": (),
    "data": (4,),
    "both": (4,),
    "heads": (2, 4),
}

#: The axis of a constant weight's scales, None for one scale in all, by the form's ``scales``.
_Axes = Mapping[str, int | None]
_CONVOLUTION_AXES: _Axes = {
    "usual": 0,
    "tensor": None,
    "axis 1": 1,
}
_DECONVOLUTION_AXES: _Axes = {
    "usual": None,
    "tensor": None,
    "axis 0": 0,
    "axis 1": 1,
}
_LAST_AXIS: _Axes = {
    "usual": 1,
    "tensor": None,
    "wrong axis": 0,
}
_FIRST_AXIS: _Axes = {
    "usual": 0,
    "tensor": None,
    "wrong axis": 1,
}

#: Attributes of operators that do not depend on the form.
_FIXED_ATTRIBUTES: Mapping[str, dict[str, Any]] = {
    "Einsum": {"equation": "ij,jk->ik"},
    "ReduceMean": {"keepdims": 1},
    "Concat": {"axis": 1},
    "Softmax": {"axis": 1},
    "Resize": {"mode": "nearest"},
    "Transpose": {"perm": [0, 2, 3, 1]},
    "LeakyRelu": {"alpha": 0.1},
}


class LayerOperand(msgspec.Struct, frozen=True):
    """One input of a measured layer; an empty name leaves the input out."""

    name: str
    shape: tuple[int, ...]
    is_constant: bool = False
    #: The axis with one scale per channel, or None for one scale in all.
    axis: int | None = None
    has_pair: bool = True
    #: The values along the axis that share a scale, 0 where all of an index do.
    block: int = 0
    #: The values of a constant, or none for random ones in [-1, 1].
    values: tuple[float, ...] = ()

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of the scales."""
        if self.axis is None:
            return ()
        if not self.block:
            return (self.shape[self.axis],)
        blocks = list(self.shape)
        blocks[self.axis] //= self.block
        return tuple(blocks)


class MeasuredLayer(msgspec.Struct, frozen=True):
    """The operands of a measured layer, and its attributes."""

    operands: tuple[LayerOperand, ...]
    attributes: dict[str, Any] = {}

    @property
    def has_blocks(self) -> bool:
        """Whether a weight has scales in blocks."""
        return any(operand.block for operand in self.operands)


def make_layer(form: FullForm) -> MeasuredLayer:
    """Return the layer of a form."""
    make = _LAYERS.get(form.operator, _make_unary)
    if form.odd:
        form = msgspec.structs.replace(form, outputs=form.outputs + 1)
    layer = make(form)
    attributes = _FIXED_ATTRIBUTES.get(form.operator, layer.attributes)
    operands = layer.operands
    if form.block:
        operands = _limit_to_blocks(operands, form)
    return MeasuredLayer(operands, attributes)


def _limit_to_blocks(
    operands: tuple[LayerOperand, ...], form: FullForm
) -> tuple[LayerOperand, ...]:
    """Return a product's operands with a pair on the weight alone, and scales in blocks.

    The blocks are along the axis that the product sums over.
    """
    data, weight, *parameters = operands
    summed_axis = len(weight.shape) - 1 if form.transB else len(weight.shape) - 2
    data = msgspec.structs.replace(data, has_pair=False)
    weight = msgspec.structs.replace(weight, axis=summed_axis, block=form.block)
    return (data, weight, *parameters)


def _plane(form: FullForm) -> list[int]:
    """Return the spatial dimensions."""
    if form.plane == "point":
        return [1] * form.spatial
    return [_SIDE[form.spatial]] * form.spatial


def _data(form: FullForm, name: str = "x") -> LayerOperand:
    return LayerOperand(name, (1, form.channels, *_plane(form)))


def _weight(form: FullForm, shape: tuple[int, ...], axes: _Axes) -> LayerOperand:
    """Return the second operand; `axes` are the axes of a constant's scales by the form's key."""
    if not form.has_constant_weight:
        return LayerOperand("w", shape)
    return LayerOperand("w", shape, is_constant=True, axis=axes[form.scales])


def _parameter(name: str, shape: tuple[int, ...], *values: float) -> LayerOperand:
    """Return a constant operand without a pair."""
    return LayerOperand(name, shape, is_constant=True, has_pair=False, values=values)


def _count_groups(form: FullForm) -> int:
    if form.groups == "depthwise":
        return form.channels
    return _GROUP_COUNTS[form.groups]


def _window_attributes(form: FullForm) -> dict[str, Any]:
    return {
        "kernel_shape": [form.kernel] * form.spatial,
        "strides": [form.stride] * form.spatial,
    }


def _make_convolution(form: FullForm) -> MeasuredLayer:
    groups = _count_groups(form)
    outputs = form.channels if form.groups == "depthwise" else form.outputs
    attributes = _window_attributes(form)
    shape = (outputs, form.channels // groups, *attributes["kernel_shape"])
    weight = _weight(form, shape, _CONVOLUTION_AXES)
    padding = form.kernel // 2 * form.dilation
    attributes["group"] = groups
    attributes["dilations"] = [form.dilation] * form.spatial
    attributes["pads"] = [padding] * 2 * form.spatial
    return MeasuredLayer((_data(form), weight), attributes)


def _make_deconvolution(form: FullForm) -> MeasuredLayer:
    groups = _count_groups(form)
    group_outputs = 1 if form.groups == "depthwise" else form.outputs // groups
    attributes = _window_attributes(form)
    shape = (form.channels, group_outputs, *attributes["kernel_shape"])
    weight = _weight(form, shape, _DECONVOLUTION_AXES)
    attributes["group"] = groups
    return MeasuredLayer((_data(form), weight), attributes)


def _make_gemm(form: FullForm) -> MeasuredLayer:
    data_shape = (form.rows, form.channels)
    if form.transA:
        data_shape = data_shape[::-1]
    weight_shape = (form.channels, form.outputs)
    axes = _LAST_AXIS
    if form.transB:
        weight_shape = weight_shape[::-1]
        axes = _FIRST_AXIS
    operands = [LayerOperand("x", data_shape), _weight(form, weight_shape, axes)]
    if form.bias:
        operands.append(_parameter("b", (form.outputs,)))
    attributes: dict[str, Any] = {}
    for name in _GEMM_ATTRIBUTES:
        value = getattr(form, name)
        if value is not None:
            attributes[name] = value
    return MeasuredLayer(tuple(operands), attributes)


def _make_matmul(form: FullForm) -> MeasuredLayer:
    batch = _BATCHES[form.batched]
    weight_shape: tuple[int, ...] = (form.channels, form.outputs)
    if form.batched != "data":
        weight_shape = (*batch, *weight_shape)
    last_axis = len(weight_shape) - 1
    axes = {
        "usual": last_axis,
        "tensor": None,
        "wrong axis": last_axis - 1,
    }
    data = LayerOperand("x", (*batch, form.rows, form.channels))
    return MeasuredLayer((data, _weight(form, weight_shape, axes)))


def _make_einsum(form: FullForm) -> MeasuredLayer:
    data = LayerOperand("x", (form.rows, form.channels))
    weight = _weight(form, (form.channels, form.outputs), _LAST_AXIS)
    return MeasuredLayer((data, weight))


def _make_pool(form: FullForm) -> MeasuredLayer:
    padding = form.padded * (form.kernel // 2)
    attributes = _window_attributes(form)
    attributes["pads"] = [padding] * 2 * form.spatial
    if form.operator == "AveragePool":
        attributes["count_include_pad"] = form.counted
    return MeasuredLayer((_data(form),), attributes)


def _make_spatial_mean(form: FullForm) -> MeasuredLayer:
    axes = range(2, 2 + form.spatial)
    axes_operand = _parameter("axes", (len(axes),), *axes)
    return MeasuredLayer((_data(form), axes_operand))


def _make_recurrent(form: FullForm) -> MeasuredLayer:
    hidden = form.outputs
    gate_rows = _GATES[form.operator] * hidden
    axis = _LAST_AXIS[form.scales]
    sequence = LayerOperand("x", (_STEPS, form.rows, form.channels))
    weight = LayerOperand("w", (1, gate_rows, form.channels), is_constant=True, axis=axis)
    recurrence = LayerOperand("r", (1, gate_rows, hidden), is_constant=True, axis=axis)
    return MeasuredLayer((sequence, weight, recurrence), {"hidden_size": hidden})


def _make_unary(form: FullForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form),))


def _make_binary(form: FullForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form), _data(form, "z")))


def _make_clip(form: FullForm) -> MeasuredLayer:
    low = _parameter("low", (), 0.0)
    high = _parameter("high", (), 0.5)
    return MeasuredLayer((_data(form), low, high))


def _make_layer_normalization(form: FullForm) -> MeasuredLayer:
    channels = form.channels
    data = LayerOperand("x", (form.rows, channels))
    scale = _parameter("s", (channels,))
    return MeasuredLayer((data, scale))


def _make_resize(form: FullForm) -> MeasuredLayer:
    doubled = [2 * side for side in _plane(form)]
    sizes = (1, form.channels, *doubled)
    omitted = LayerOperand("", ())
    sizes_operand = _parameter("sizes", (len(sizes),), *sizes)
    return MeasuredLayer((_data(form), omitted, omitted, sizes_operand))


#: By operator; others are unary layers.
_LAYERS: dict[str, Callable[[FullForm], MeasuredLayer]] = {
    "Conv": _make_convolution,
    "ConvTranspose": _make_deconvolution,
    "Gemm": _make_gemm,
    "MatMul": _make_matmul,
    "Einsum": _make_einsum,
    "AveragePool": _make_pool,
    "MaxPool": _make_pool,
    "LSTM": _make_recurrent,
    "GRU": _make_recurrent,
    "RNN": _make_recurrent,
    "ReduceMean": _make_spatial_mean,
    "Add": _make_binary,
    "Mul": _make_binary,
    "Concat": _make_binary,
    "Clip": _make_clip,
    "LayerNormalization": _make_layer_normalization,
    "Resize": _make_resize,
}
