"""One-layer networks -> kernel tables: which forms of layer TensorRT-RTX runs in INT8 on a compute capability.

Each form is built alone, with the Q/DQ that TensorRT asks for, and the answer is read from the
engine's layers. No GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import msgspec
import numpy as np
import onnx
import yaml
from onnx import numpy_helper

from qdq.engine import Engine, EngineLayer, build_engine
from qdq.errors import CompilerError, UsageError
from qdq.kernels import KernelTable, Row
from qdq.operands import WEIGHTED
from qdq.quantizer import INT8_LEVELS
from qdq.target import Target

#: Name of the node that is measured in every network.
LAYER = "layer"

_OPSET, _IR = 17, 8
_CHANNELS = 64
_GROUPS = {"none": 1, "grouped": 2, "depthwise": _CHANNELS}
#: Length of each side of the data, by spatial rank.
_SIDE = {1: 32, 2: 16, 3: 8}
#: Size and stride of averaging windows; only some of them have an INT8 kernel.
_AVERAGED = ((2, 1), (3, 1), (5, 1), (2, 2), (3, 2))
_PADDED_WINDOW = 3
#: The last row of every measured table: averaging windows that were not built.
OTHER_AVERAGES = Row({"operator": "AveragePool"}, False, "of the windows that were built, only 3x3 with stride 1 ran in INT8")
_ROWS, _COLUMNS = 32, 128
#: Every network reads data in [-1, 1].
_SCALE = 1 / INT8_LEVELS

#: Kinds of engine layer that compute a network's layer; others prepare its data or finish its result.
_COMPUTING = ("avgpool", "correlation", "deconv", "gemm", "maxpool", "runtime_fusion")


class _Operand(msgspec.Struct, frozen=True):
    """One input of the measured layer."""

    name: str
    shape: tuple[int, ...]
    constant: bool = False
    #: The axis with one scale each, or None for one scale in all.
    axis: int | None = None


class _Layer(msgspec.Struct, frozen=True):
    """What the measured layer reads, and its attributes."""

    operands: tuple[_Operand, ...]
    attributes: dict[str, Any]


def forms() -> tuple[dict[str, Any], ...]:
    """Return the forms that are probed, in the vocabulary of `kernels.layer_form`."""
    return (*_convolutions(), *_products(), *_pools())


def network(form: dict[str, Any]) -> onnx.ModelProto:
    """Return a network of one layer of a form: operands in pairs, a pool's result too, scales per channel where they may be."""
    return _model(form, quantized=True)


def float_network(form: dict[str, Any]) -> onnx.ModelProto:
    """Return the same network without Q/DQ."""
    return _model(form, quantized=False)


def measure(form: dict[str, Any], target: Target) -> Row:
    """Return what TensorRT-RTX makes of one layer of a form.

    A layer that it refuses to build counts as not INT8. Raises UsageError for another backend and
    CompilerError where the compiler is missing or its answer cannot be read.
    """
    return _row(form, _built(network(form), target))


def probe(target: Target) -> KernelTable:
    """Return the kernel table of a target, measured form by form; raises as `measure` does."""
    engines = [(form, _built(network(form), target)) for form in forms()]
    rows = tuple(_row(form, engine) for form, engine in engines)
    return KernelTable(target.backend, target.sm, engines[0][1].compiler, (*rows, OTHER_AVERAGES))


def table_yaml(table: KernelTable) -> str:
    """Return the text of a table's file: three lines a row."""
    return yaml.safe_dump(msgspec.to_builtins(table), sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)


def _convolutions() -> Iterator[dict[str, Any]]:
    for operands, spatial, groups in product(("constant", "computed"), _SIDE, _GROUPS):
        yield {"operator": "Conv", "spatial": spatial, "groups": groups, "operands": operands}
    for operands, spatial, groups in product(("constant", "computed"), _SIDE, ("none", "grouped")):
        yield {"operator": "ConvTranspose", "spatial": spatial, "groups": groups, "operands": operands}


def _products() -> Iterator[dict[str, Any]]:
    for operator, operands in product(("Gemm", "MatMul"), ("constant", "computed")):
        yield {"operator": operator, "operands": operands}


def _pools() -> Iterator[dict[str, Any]]:
    for spatial, (size, stride) in product(_SIDE, _AVERAGED):
        yield {"operator": "AveragePool", "spatial": spatial, "window": "x".join([str(size)] * spatial), "stride": stride}
    for spatial in _SIDE:
        yield {"operator": "MaxPool", "spatial": spatial}
    for spatial in _SIDE:
        yield {"operator": "GlobalAveragePool", "spatial": spatial}


def _layer(form: dict[str, Any]) -> _Layer:
    if form["operator"] in ("Gemm", "MatMul"):
        return _product(form)
    data = _Operand("x", (1, _CHANNELS, *[_SIDE[form["spatial"]]] * form["spatial"]))
    if form["operator"] in ("Conv", "ConvTranspose"):
        return _convolution(form, data)
    return _Layer((data,), _window(form))


def _convolution(form: dict[str, Any], data: _Operand) -> _Layer:
    spatial, group, constant = form["spatial"], _GROUPS[form["groups"]], form["operands"] == "constant"
    transposed = form["operator"] == "ConvTranspose"
    kernel = [2 if transposed else 3] * spatial
    axis = 0 if constant and not transposed else None
    weight = _Operand("w", (_CHANNELS, _CHANNELS // group, *kernel), constant, axis)
    placing = {"strides": [2] * spatial} if transposed else {"pads": [1, 1] * spatial}
    return _Layer((data, weight), {"group": group, "kernel_shape": kernel, **placing})


def _product(form: dict[str, Any]) -> _Layer:
    data = _Operand("x", (_ROWS, _CHANNELS))
    constant = form["operands"] == "constant"
    if form["operator"] == "Gemm":
        return _Layer((data, _Operand("w", (_COLUMNS, _CHANNELS), constant, 0 if constant else None)), {"transB": 1})
    return _Layer((data, _Operand("w", (_CHANNELS, _COLUMNS), constant, 1 if constant else None)), {})


def _window(form: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a pool: none for a global one, a halving window of 2 where the form leaves it open."""
    if form["operator"] == "GlobalAveragePool":
        return {}
    spatial, size = form["spatial"], int(form.get("window", "2").split("x")[0])
    pads = [1 if size == _PADDED_WINDOW else 0] * 2 * spatial
    return {"kernel_shape": [size] * spatial, "strides": [form.get("stride", 2)] * spatial, "pads": pads}


def _model(form: dict[str, Any], quantized: bool) -> onnx.ModelProto:
    layer = _layer(form)
    graph = onnx.GraphProto(name="one-layer")
    for operand in layer.operands:
        _declare(graph, operand)
    inputs = [_pair(graph, operand) if quantized else operand.name for operand in layer.operands]
    graph.node.append(onnx.helper.make_node(form["operator"], inputs, ["y"], name=LAYER, **layer.attributes))
    ends_in_pair = quantized and form["operator"] not in WEIGHTED
    result = _pair(graph, _Operand("y", ())) if ends_in_pair else "y"
    graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _declare(graph: onnx.GraphProto, operand: _Operand) -> None:
    """Add an operand to a graph: an initializer with values in [-1, 1], or an input."""
    if operand.constant:
        values = np.random.default_rng(0).uniform(-1, 1, operand.shape).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, operand.name))
    else:
        graph.input.append(onnx.helper.make_tensor_value_info(operand.name, onnx.TensorProto.FLOAT, operand.shape))


def _pair(graph: onnx.GraphProto, operand: _Operand) -> str:
    """Add a pair behind an operand and return the name of what the pair gives."""
    name, axis = operand.name, operand.axis
    shape = () if axis is None else (operand.shape[axis],)
    scale, zero, stored, given = (f"{name}_{part}" for part in ("scale", "zero_point", "quantized", "dequantized"))
    graph.initializer.append(numpy_helper.from_array(np.full(shape, _SCALE, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.int8), zero))
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    for operator, source, result in (("QuantizeLinear", name, stored), ("DequantizeLinear", stored, given)):
        graph.node.append(onnx.helper.make_node(operator, [source, scale, zero], [result], name=f"{name}_{operator}", **attributes))
    return given


def _built(model: onnx.ModelProto, target: Target) -> Engine:
    if target.backend != "rtx":
        raise UsageError(f"target {target}: only rtx targets can be probed; the tables of other backends are written by hand")
    return build_engine(model, target)


def _row(form: dict[str, Any], engine: Engine) -> Row:
    if engine.failure:
        alone = _built(float_network(form), engine.target)
        without = "(nor without Q/DQ)" if alone.failure else "(but does without Q/DQ)"
        return Row(form, False, f"does not build: {last_sentence(engine.failure)} {without}")
    layers = _computing(engine)
    if not layers:
        raise CompilerError(f"target {engine.target}: no engine layer carries the {form['operator']} that was built; this TensorRT-RTX logs another way")
    seen = " + ".join(_seen(layer) for layer in layers)
    return Row(form, all(_is_int8(form, layer) for layer in layers), seen)


def _computing(engine: Engine) -> list[EngineLayer]:
    """Return the engine layers that compute the measured one; a generated kernel only where there is no other."""
    carrying = [layer for layer in engine.layers if LAYER in layer.nodes]
    return [layer for layer in carrying if layer.kind in _COMPUTING] or carrying


def _is_int8(form: dict[str, Any], layer: EngineLayer) -> bool:
    if form["operator"] in WEIGHTED:
        return layer.multiplies("Int8")
    return layer.kind in _COMPUTING and {tensor.dtype for tensor in (*layer.inputs, *layer.outputs)} == {"Int8"}


def _has_int8_constant(layer: EngineLayer) -> bool:
    return any(tensor.dtype == "Int8" for tensor in layer.constants)


def _seen(layer: EngineLayer) -> str:
    """Return an engine layer in words: its kind and the types of its data, INT8 weight and result."""
    read = [tensor.dtype for tensor in layer.inputs] + ["Int8"] * _has_int8_constant(layer)
    written = [tensor.dtype for tensor in layer.outputs]
    if len({*read, *written}) == 1 and read[0] != "Int8":
        return f"{layer.kind} in {read[0]}"
    return f"{layer.kind} {','.join(read)} -> {','.join(written)}"


def last_sentence(failure: str) -> str:
    """Return what the compiler's words come to, without the name of the operation."""
    return failure.rsplit(": ", 1)[-1]
