"""Prediction of the engine that TensorRT builds, where it cannot be compiled.

TensorRT chooses among kernels by timing them on the GPU. The prediction covers what does not
depend on that: the nodes that run as one layer (`fusion`), the tensors in INT8
(`qdq_propagation`), and from both the type and memory format of every tensor, the conversions
between them, and the Q and DQ that stay separate layers. Formats follow NvInferRuntime.h
(TensorFormat) and the engines that NVIDIA published with trt-engine-explorer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import TensorProto

from qdq.engines.engine import Engine, EngineLayer
from qdq.engines.prediction.concat_layers import add_concat
from qdq.engines.prediction.engine_builder import EngineBuilder
from qdq.engines.prediction.fusion import fuse_nodes
from qdq.engines.prediction.fusion_group import FusionGroup
from qdq.engines.prediction.generated_layers import add_pointwise_layer, add_unfused_layer
from qdq.engines.prediction.memory_formats import FLOATS, LINEAR
from qdq.engines.prediction.moving_layers import add_pool, add_shuffle
from qdq.engines.prediction.qdq_propagation import QuantizationFlow
from qdq.engines.prediction.static_shapes import infer_static_shapes
from qdq.engines.prediction.weighted_layers import add_recurrent_layer, add_weighted_layer
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex, Node
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source
from qdq.target import Target

#: First compute capability with FP8 (TensorRT support matrix).
_FP8 = 89
_ZERO_POINT_SLOT = 2

_LAYER_FUNCTIONS: Mapping[str, Callable[[EngineBuilder, FusionGroup], None]] = {
    "weighted": add_weighted_layer,
    "recurrent": add_recurrent_layer,
    "pointwise": add_pointwise_layer,
    "pool": add_pool,
    "shuffle": add_shuffle,
    "concat": add_concat,
    "other": add_unfused_layer,
}


def predict_engine(
    model: onnx.ModelProto | Source,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    allow_fp16: bool = False,
) -> Engine:
    """Return the engine that TensorRT is predicted to build; each layer names its fusion rule.

    `shapes` fixes the dynamic dimensions by input name; those not named become 1. By default the
    network is strongly typed, as always in TensorRT 11: the ONNX types decide. With `allow_fp16`
    the prediction is for TensorRT 10 and earlier, weakly typed and built with FP16 allowed.
    Takes time linear in the number of nodes.
    """
    source = model if isinstance(model, Source) else Source(None, model, "")
    index = CompilerView(infer_static_shapes(source, shapes or {}))
    typing = "weakly typed, FP16 allowed" if allow_fp16 else "strongly typed"
    compiler = f"TensorRT, {typing}"
    refusal = _find_refusal(index, target)
    if refusal:
        return Engine(target, compiler, failure=refusal)
    builder = EngineBuilder(QuantizationFlow(index), target, allow_fp16)
    return Engine(target, compiler, _predict_layers(builder))


def _find_refusal(index: GraphIndex, target: Target) -> str:
    """Return the first reason why the ONNX importer or the builder refuses a graph, or ""."""
    for node in index.nodes:
        if node.op in (QUANTIZE, DEQUANTIZE):
            reason = _refusal_of(index, node, target)
            if reason:
                return f"{node.label}: {reason}"
    return ""


def _refusal_of(index: GraphIndex, node: Node, target: Target) -> str:
    """Return why a Q or DQ is refused, or ""."""
    stored = node.inputs[0] if node.op == DEQUANTIZE else node.outputs[0]
    elem_type = index.elem_type(stored)
    if elem_type == TensorProto.FLOAT8E4M3FN and 0 < target.sm < _FP8:
        return "FP8 needs compute capability 8.9 or higher"
    if elem_type == TensorProto.INT32:
        return "a DequantizeLinear of INT32, such as a quantized bias, is not supported"
    if _has_zero_point(index, node):
        return "a zero point other than zero is not supported"
    return ""


def _has_zero_point(index: GraphIndex, node: Node) -> bool:
    """Whether a Q or DQ has a constant zero point other than zero."""
    if len(node.inputs) <= _ZERO_POINT_SLOT:
        return False
    zero_point = node.inputs[_ZERO_POINT_SLOT]
    if not index.is_constant(zero_point):
        return False
    return bool(index.constant(zero_point).astype(float).any())


def _predict_layers(builder: EngineBuilder) -> tuple[EngineLayer, ...]:
    index = builder.flow.index
    for name in index.inputs:
        builder.memory.store(name, builder.memory.onnx_type(name), LINEAR)
    for group in fuse_nodes(builder.flow):
        add_layers = _LAYER_FUNCTIONS[group.family]
        add_layers(builder, group)
    for name in index.outputs:
        if name not in builder.flow.folded:
            _convert_output(builder, name)
    return tuple(builder.layers)


def _convert_output(builder: EngineBuilder, name: str) -> None:
    """Convert a graph output to the type that the model gives it, in rows."""
    read = builder.flow.read(name)
    dtype = builder.memory.onnx_type(name)
    if read.quantization and dtype not in FLOATS:
        builder.read_quantized(read, read.quantization, LINEAR)
    else:
        builder.read_float(read, dtype, LINEAR)
