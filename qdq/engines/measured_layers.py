"""The operands and attributes of the layer that a form describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from qdq.engines.layer_forms import LayerForm

#: Length of each side of a wide plane, by spatial rank.
_SIDE = {1: 64, 2: 16, 3: 8}

#: Length of the sequence that a recurrent layer reads.
_STEPS = 8

#: Gates of each recurrent operator, which its weights hold one after another.
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

#: Shape of the batch that both operands, or one alone, have.
_BATCHES: Mapping[str, tuple[int, ...]] = {
    "none": (),
    "data": (4,),
    "both": (4,),
    "heads": (2, 4),
}
_CHANNELS_LAST = [0, 2, 3, 1]


class LayerOperand(msgspec.Struct, frozen=True):
    """One input of a measured layer; an empty name leaves the input out."""

    name: str
    shape: tuple[int, ...]
    is_constant: bool = False
    #: The axis with one scale per channel, or None for one scale in all.
    axis: int | None = None
    has_pair: bool = True
    #: The values of a constant, or none for random ones in [-1, 1].
    values: tuple[float, ...] = ()


class MeasuredLayer(msgspec.Struct, frozen=True):
    """The operands of a measured layer, and its attributes."""

    operands: tuple[LayerOperand, ...]
    attributes: dict[str, Any] = {}


def make_layer(form: LayerForm) -> MeasuredLayer:
    """Return the layer of a form that has all keys."""
    make = _LAYERS.get(form["operator"], _make_unary)
    return make(form)


def _plane(form: LayerForm) -> list[int]:
    """Return the spatial dimensions."""
    side = 1 if form["plane"] == "point" else _SIDE[form["spatial"]]
    return [side] * int(form["spatial"])


def _data(form: LayerForm, name: str = "x") -> LayerOperand:
    return LayerOperand(name, (1, form["channels"], *_plane(form)))


def _weight(
    form: LayerForm, shape: tuple[int, ...], axes: Mapping[str, int | None]
) -> LayerOperand:
    """Return the second operand; `axes` are the axes of a constant's scales by the form's key."""
    is_constant = form["operands"] == "constant"
    axis = axes[form["scales"]] if is_constant else None
    return LayerOperand("w", shape, is_constant, axis)


def _parameter(name: str, shape: tuple[int, ...], *values: float) -> LayerOperand:
    """Return a constant operand without a pair."""
    return LayerOperand(name, shape, is_constant=True, has_pair=False, values=values)


def _count_groups(form: LayerForm) -> int:
    counts = {"none": 1, "grouped": 2, "depthwise": int(form["channels"])}
    return counts[form["groups"]]


def _window_attributes(form: LayerForm) -> dict[str, Any]:
    spatial = form["spatial"]
    return {"kernel_shape": [form["kernel"]] * spatial, "strides": [form["stride"]] * spatial}


def _make_convolution(form: LayerForm) -> MeasuredLayer:
    spatial = form["spatial"]
    kernel = form["kernel"]
    dilation = form["dilation"]
    group = _count_groups(form)
    outputs = form["channels"] if form["groups"] == "depthwise" else form["outputs"]
    shape = (outputs, form["channels"] // group, *[kernel] * spatial)
    weight = _weight(form, shape, {"usual": 0, "tensor": None, "axis 1": 1})
    padding = kernel // 2 * dilation
    attributes = {
        **_window_attributes(form),
        "group": group,
        "dilations": [dilation] * spatial,
        "pads": [padding] * 2 * spatial,
    }
    return MeasuredLayer((_data(form), weight), attributes)


def _make_deconvolution(form: LayerForm) -> MeasuredLayer:
    group = _count_groups(form)
    outputs_per_group = 1 if form["groups"] == "depthwise" else form["outputs"] // group
    window = [form["kernel"]] * form["spatial"]
    shape = (form["channels"], outputs_per_group, *window)
    weight = _weight(form, shape, {"usual": None, "tensor": None, "axis 0": 0, "axis 1": 1})
    attributes = {**_window_attributes(form), "group": group}
    return MeasuredLayer((_data(form), weight), attributes)


def _make_gemm(form: LayerForm) -> MeasuredLayer:
    data_shape = (form["rows"], form["channels"])
    if form.get("transA", 0):
        data_shape = data_shape[::-1]
    weight_shape = (form["channels"], form["outputs"])
    axes = {"usual": 1, "tensor": None, "wrong axis": 0}
    if form.get("transB", 0):
        weight_shape = weight_shape[::-1]
        axes = {"usual": 0, "tensor": None, "wrong axis": 1}
    operands = [LayerOperand("x", data_shape), _weight(form, weight_shape, axes)]
    if form.get("bias"):
        operands.append(_parameter("b", (form["outputs"],)))
    attributes: dict[str, Any] = {}
    for key in ("transA", "transB", "alpha", "beta"):
        if key in form:
            attributes[key] = form[key]
    return MeasuredLayer(tuple(operands), attributes)


def _make_matmul(form: LayerForm) -> MeasuredLayer:
    batch = _BATCHES[form["batched"]]
    weight_batch = () if form["batched"] == "data" else batch
    weight_shape = (*weight_batch, form["channels"], form["outputs"])
    last_axis = len(weight_shape) - 1
    axes = {"usual": last_axis, "tensor": None, "wrong axis": last_axis - 1}
    data = LayerOperand("x", (*batch, form["rows"], form["channels"]))
    return MeasuredLayer((data, _weight(form, weight_shape, axes)))


def _make_einsum(form: LayerForm) -> MeasuredLayer:
    data = LayerOperand("x", (form["rows"], form["channels"]))
    is_constant = form["operands"] == "constant"
    axis = 1 if is_constant else None
    weight = LayerOperand("w", (form["channels"], form["outputs"]), is_constant, axis)
    return MeasuredLayer((data, weight), {"equation": "ij,jk->ik"})


def _make_pool(form: LayerForm) -> MeasuredLayer:
    padding = form["padded"] * (form["kernel"] // 2)
    attributes = {**_window_attributes(form), "pads": [padding] * 2 * form["spatial"]}
    if form["operator"] == "AveragePool":
        attributes["count_include_pad"] = form["counted"]
    return MeasuredLayer((_data(form),), attributes)


def _make_spatial_mean(form: LayerForm) -> MeasuredLayer:
    axes = range(2, 2 + form["spatial"])
    return MeasuredLayer((_data(form), _parameter("axes", (len(axes),), *axes)), {"keepdims": 1})


def _make_recurrent(form: LayerForm) -> MeasuredLayer:
    hidden = form["outputs"]
    gate_rows = _GATES[form["operator"]] * hidden
    axis = {"usual": 1, "tensor": None}[form["scales"]]
    operands = (
        LayerOperand("x", (_STEPS, form["rows"], form["channels"])),
        LayerOperand("w", (1, gate_rows, form["channels"]), is_constant=True, axis=axis),
        LayerOperand("r", (1, gate_rows, hidden), is_constant=True, axis=axis),
    )
    return MeasuredLayer(operands, {"hidden_size": hidden})


def _make_unary(form: LayerForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form),))


def _make_binary(form: LayerForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form), _data(form, "z")))


def _make_concat(form: LayerForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form), _data(form, "z")), {"axis": 1})


def _make_clip(form: LayerForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form), _parameter("low", (), 0.0), _parameter("high", (), 0.5)))


def _make_softmax(form: LayerForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form),), {"axis": 1})


def _make_layer_normalization(form: LayerForm) -> MeasuredLayer:
    channels = form["channels"]
    data = LayerOperand("x", (form["rows"], channels))
    return MeasuredLayer((data, _parameter("s", (channels,))))


def _make_resize(form: LayerForm) -> MeasuredLayer:
    doubled = [2 * side for side in _plane(form)]
    sizes = (1, form["channels"], *doubled)
    omitted = LayerOperand("", ())
    operands = (_data(form), omitted, omitted, _parameter("sizes", (len(sizes),), *sizes))
    return MeasuredLayer(operands, {"mode": "nearest"})


def _make_transpose(form: LayerForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form),), {"perm": _CHANNELS_LAST})


def _make_leaky_relu(form: LayerForm) -> MeasuredLayer:
    return MeasuredLayer((_data(form),), {"alpha": 0.1})


#: By operator; others are unary layers without attributes.
_LAYERS: dict[str, Callable[[LayerForm], MeasuredLayer]] = {
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
    "Concat": _make_concat,
    "Clip": _make_clip,
    "Softmax": _make_softmax,
    "LayerNormalization": _make_layer_normalization,
    "Resize": _make_resize,
    "Transpose": _make_transpose,
    "LeakyRelu": _make_leaky_relu,
}
