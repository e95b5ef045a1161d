"""Networks of one layer, made from a form: what `qdq probe` compiles.

A form is a dictionary in the vocabulary of the kernel tables (docs/kernels.md); a key left out takes
its value from `DEFAULT_FORM`. Weighted layers have pairs on both operands; other layers lie between an INT8
(FP8) input and output of the network, so that the layer's own kernel is seen and not the quantizing
around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qdq.graph.operators import RECURRENT, WEIGHTED
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8_LEVELS

LayerForm = dict[str, Any]

#: Name of the node that is measured in every network.
LAYER = "layer"

#: What a layer is like where its form does not say.
DEFAULT_FORM: LayerForm = {
    "graph": "float32", "operands": "constant", "spatial": 2, "kernel": 3, "stride": 1, "dilation": 1, "groups": "none",
    "channels": 32, "outputs": 64, "plane": "wide", "rows": 32, "batched": "none", "scales": "usual", "padded": 0, "counted": 0,
}  # fmt: skip
DEFAULT_DECONVOLUTION: LayerForm = {"kernel": 2, "stride": 2}
_OPSET, _IR = 19, 9
_TYPES = {"float32": (TensorProto.FLOAT, np.float32), "float16": (TensorProto.FLOAT16, np.float16)}

#: Length of each side of a wide plane, by spatial rank.
_SIDE = {1: 64, 2: 16, 3: 8}

#: Every network reads data in [-1, 1].
_SCALE = 1 / INT8_LEVELS
_STEPS = 8


class _Operand(msgspec.Struct, frozen=True):
    """One input of the measured layer."""

    name: str
    shape: tuple[int, ...]
    constant: bool = False
    #: The axis with one scale each, or None for one scale in all.
    axis: int | None = None
    #: Whether it gets a pair.
    paired: bool = True
    #: The values of a constant; none for random ones in [-1, 1].
    values: tuple[float, ...] = ()


class _Layer(msgspec.Struct, frozen=True):
    """What the measured layer reads, and its attributes."""

    operands: tuple[_Operand, ...]
    attributes: dict[str, Any] = {}


def default_form(operator: str) -> LayerForm:
    """Return the form that keys left out stand for."""
    return {**DEFAULT_FORM, **(DEFAULT_DECONVOLUTION if operator == "ConvTranspose" else {})}


def make_network(form: LayerForm, pairs: str = "int8") -> onnx.ModelProto:
    """Return the one-layer network of a form with ``int8`` or ``fp8`` pairs; ``none`` gives the float layer."""
    whole = {**default_form(form["operator"]), **form}
    layer = _BUILDERS.get(form["operator"], _pointwise)(whole)
    return _Network(whole["graph"], pairs).model(form["operator"], layer)


class _Network:
    """A graph under construction."""

    def __init__(self, graph: str, pairs: str) -> None:
        self.elem, self.dtype = _TYPES[graph]
        self.graph = onnx.GraphProto(name="one-layer")
        self.stored = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}.get(pairs)

    def model(self, operator: str, layer: _Layer) -> onnx.ModelProto:
        weighted = operator in WEIGHTED
        inputs = [self._operand(operand, weighted) for operand in layer.operands]
        outputs = ["", "y"] if operator in RECURRENT else ["y"]
        self.graph.node.append(
            helper.make_node(operator, inputs, outputs, name=LAYER, **layer.attributes)
        )
        ends_in_int8 = self.stored is not None and not weighted
        result = self._quantize("y", None, ()) if ends_in_int8 else "y"
        self.graph.output.append(
            helper.make_tensor_value_info(
                result, self.stored if ends_in_int8 and self.stored else self.elem, None
            )
        )
        model = helper.make_model(
            self.graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR
        )
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def _operand(self, operand: _Operand, weighted: bool) -> str:
        if operand.name == "":
            return ""
        paired = self.stored is not None and operand.paired
        if operand.constant:
            self.graph.initializer.append(
                numpy_helper.from_array(self._constant(operand), operand.name)
            )
        elif paired and not weighted and self.stored:
            self.graph.input.append(
                helper.make_tensor_value_info(operand.name, self.stored, operand.shape)
            )
            return self._dequantize(operand.name, operand.name, operand.axis, operand.shape)
        else:
            self.graph.input.append(
                helper.make_tensor_value_info(operand.name, self.elem, operand.shape)
            )
        if not paired:
            return operand.name
        return self._dequantize(
            operand.name,
            self._quantize(operand.name, operand.axis, operand.shape),
            operand.axis,
            operand.shape,
        )

    def _constant(self, operand: _Operand) -> np.ndarray[Any, Any]:
        if operand.values:
            whole = all(isinstance(value, int) for value in operand.values)
            return np.reshape(
                np.array(operand.values, np.int64 if whole else self.dtype), operand.shape
            )
        return np.random.default_rng(0).uniform(-1, 1, operand.shape).astype(self.dtype)

    def _quantize(self, name: str, axis: int | None, shape: tuple[int, ...]) -> str:
        return self._convert("QuantizeLinear", name, name, axis, shape)

    def _dequantize(self, name: str, source: str, axis: int | None, shape: tuple[int, ...]) -> str:
        return self._convert("DequantizeLinear", name, source, axis, shape)

    def _convert(
        self, operator: str, name: str, source: str, axis: int | None, shape: tuple[int, ...]
    ) -> str:
        size = () if axis is None else (shape[axis],)
        scale, zero, result = f"{name}_scale", f"{name}_zero_point", f"{name}_{operator}"
        if scale not in {i.name for i in self.graph.initializer}:
            fp8 = self.stored == TensorProto.FLOAT8E4M3FN
            step = 1 / ELEMENT_TYPES[E4M3].largest if fp8 else _SCALE
            self.graph.initializer.append(
                numpy_helper.from_array(np.full(size, step, self.dtype), scale)
            )
            self.graph.initializer.append(
                helper.make_tensor(
                    zero, self.stored or TensorProto.INT8, size, [0] * math.prod(size)
                )
            )
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.graph.node.append(
            helper.make_node(operator, [source, scale, zero], [result], name=result, **attributes)
        )
        return result


def _plane(form: LayerForm) -> list[int]:
    side = 1 if form["plane"] == "point" else _SIDE[form["spatial"]]
    return [side] * int(form["spatial"])


def _data(form: LayerForm) -> _Operand:
    return _Operand("x", (1, form["channels"], *_plane(form)))


def _groups(form: LayerForm) -> int:
    return {"none": 1, "grouped": 2, "depthwise": int(form["channels"])}[form["groups"]]


def _windows(form: LayerForm) -> dict[str, Any]:
    spatial = form["spatial"]
    return {"kernel_shape": [form["kernel"]] * spatial, "strides": [form["stride"]] * spatial}


def _convolution(form: LayerForm) -> _Layer:
    spatial, group, dilation = form["spatial"], _groups(form), form["dilation"]
    outputs = form["channels"] if form["groups"] == "depthwise" else form["outputs"]
    shape = (outputs, form["channels"] // group, *[form["kernel"]] * spatial)
    constant = form["operands"] == "constant"
    axis = {"usual": 0, "tensor": None, "axis 1": 1}[form["scales"]] if constant else None
    attributes = {
        **_windows(form),
        "group": group,
        "dilations": [dilation] * spatial,
        "pads": [form["kernel"] // 2 * dilation] * 2 * spatial,
    }
    return _Layer((_data(form), _Operand("w", shape, constant, axis)), attributes)


def _deconvolution(form: LayerForm) -> _Layer:
    spatial, group = form["spatial"], _groups(form)
    per_group = 1 if form["groups"] == "depthwise" else form["outputs"] // group
    shape = (form["channels"], per_group, *[form["kernel"]] * spatial)
    constant = form["operands"] == "constant"
    axis = (
        {"usual": None, "tensor": None, "axis 0": 0, "axis 1": 1}[form["scales"]]
        if constant
        else None
    )
    return _Layer(
        (_data(form), _Operand("w", shape, constant, axis)), {**_windows(form), "group": group}
    )


def _gemm(form: LayerForm) -> _Layer:
    rows, inner, outputs = form["rows"], form["channels"], form["outputs"]
    across, turned = form.get("transA", 0), form.get("transB", 0)
    constant = form["operands"] == "constant"
    axis = (
        {"usual": 0 if turned else 1, "tensor": None, "wrong axis": 1 if turned else 0}[
            form["scales"]
        ]
        if constant
        else None
    )
    data = _Operand("x", (inner, rows) if across else (rows, inner))
    weight = _Operand("w", (outputs, inner) if turned else (inner, outputs), constant, axis)
    bias = (_Operand("b", (outputs,), constant=True, paired=False),) if form.get("bias") else ()
    attributes: dict[str, Any] = {
        key: form[key] for key in ("transA", "transB", "alpha", "beta") if key in form
    }
    return _Layer((data, weight, *bias), attributes)


def _matmul(form: LayerForm) -> _Layer:
    rows, inner, outputs = form["rows"], form["channels"], form["outputs"]
    batch: tuple[int, ...] = {"none": (), "data": (4,), "both": (4,), "heads": (2, 4)}[
        form["batched"]
    ]
    constant = form["operands"] == "constant"
    weight = (*(batch if form["batched"] != "data" else ()), inner, outputs)
    axis = (
        {"usual": len(weight) - 1, "tensor": None, "wrong axis": len(weight) - 2}[form["scales"]]
        if constant
        else None
    )
    return _Layer((_Operand("x", (*batch, rows, inner)), _Operand("w", weight, constant, axis)))


def _einsum(form: LayerForm) -> _Layer:
    rows, inner, outputs = form["rows"], form["channels"], form["outputs"]
    constant = form["operands"] == "constant"
    return _Layer(
        (
            _Operand("x", (rows, inner)),
            _Operand("w", (inner, outputs), constant, 1 if constant else None),
        ),
        {"equation": "ij,jk->ik"},
    )


def _pool(form: LayerForm) -> _Layer:
    attributes = {
        **_windows(form),
        "pads": [form["padded"] * (form["kernel"] // 2)] * 2 * form["spatial"],
    }
    if form["operator"] == "AveragePool":
        attributes["count_include_pad"] = form["counted"]
    return _Layer((_data(form),), attributes)


def _spatial_mean(form: LayerForm) -> _Layer:
    axes = tuple(range(2, 2 + form["spatial"]))
    return _Layer(
        (_data(form), _Operand("axes", (len(axes),), True, None, False, axes)), {"keepdims": 1}
    )


def _recurrent(form: LayerForm) -> _Layer:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[form["operator"]]
    hidden, inner = form["outputs"], form["channels"]
    axis = {"usual": 1, "tensor": None}[form["scales"]]
    weight = _Operand("w", (1, gates * hidden, inner), True, axis)
    recurrence = _Operand("r", (1, gates * hidden, hidden), True, axis)
    return _Layer(
        (_Operand("x", (_STEPS, form["rows"], inner)), weight, recurrence), {"hidden_size": hidden}
    )


def _pointwise(form: LayerForm) -> _Layer:
    """Return a layer of any other operator, with the operands and attributes that make it one of common use."""
    data, other = _data(form), _Operand("z", (1, form["channels"], *_plane(form)))
    limits = (
        _Operand("low", (), True, None, False, (0.0,)),
        _Operand("high", (), True, None, False, (0.5,)),
    )
    scale = _Operand("s", (form["channels"],), True, None, False)
    sizes = _Operand(
        "sizes",
        (2 + len(_plane(form)),),
        True,
        None,
        False,
        (1, form["channels"], *[2 * side for side in _plane(form)]),
    )
    return {
        "Add": _Layer((data, other)), "Mul": _Layer((data, other)),
        "Concat": _Layer((data, other), {"axis": 1}),
        "Clip": _Layer((data, *limits)),
        "Softmax": _Layer((data,), {"axis": 1}),
        "LayerNormalization": _Layer((_Operand("x", (form["rows"], form["channels"])), scale)),
        "Resize": _Layer((data, _Operand("", ()), _Operand("", ()), sizes), {"mode": "nearest"}),
        "Transpose": _Layer((data,), {"perm": [0, 2, 3, 1]}),
        "LeakyRelu": _Layer((data,), {"alpha": 0.1}),
    }.get(form["operator"], _Layer((data,)))  # fmt: skip


_BUILDERS: dict[str, Callable[[LayerForm], _Layer]] = {
    "Conv": _convolution, "ConvTranspose": _deconvolution, "Gemm": _gemm, "MatMul": _matmul, "Einsum": _einsum,
    "AveragePool": _pool, "MaxPool": _pool, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "ReduceMean": _spatial_mean,
}  # fmt: skip
