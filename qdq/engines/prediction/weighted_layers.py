"""Predicted layers that multiply: convolutions, deconvolutions and matrix products."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qdq.engines.engine import EngineLayer, LayerTensor
from qdq.engines.prediction.engine_builder import EngineBuilder
from qdq.engines.prediction.fusion_group import (
    FusionGroup,
    has_few_channels,
    is_depthwise,
    multiplied_type,
)
from qdq.engines.prediction.memory_formats import (
    CHANNEL_LAST,
    FLOAT,
    FOUR_WIDE,
    HALF,
    INT8,
    LINEAR,
    THIRTY_TWO_WIDE,
)
from qdq.engines.prediction.qdq_propagation import Quantization, QuantizationFlow, SlotRead
from qdq.graph.index import Node
from qdq.graph.layer_shapes import convolution_channels
from qdq.graph.operators import CONVOLUTIONS

#: First compute capability with TF32 kernels, which read channels last.
_TF32 = 80

#: Channels that each group of a grouped INT8 convolution must have a multiple of.
_GROUP_CHANNELS = 4
_RANK_2D = 4
_KEEPS_ORDER = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class _Product(msgspec.Struct, frozen=True):
    """How a weighted layer multiplies."""

    group: FusionGroup
    #: Type of the operands.
    dtype: str
    #: Name of the fusion rule.
    rule: str


def add_weighted_layer(builder: EngineBuilder, group: FusionGroup) -> None:
    """Add a convolution, deconvolution or matrix product with the nodes fused into it."""
    dtype = multiplied_type(builder.flow, group.core)
    float_rule = _find_float_rule(builder.flow, group.core, dtype)
    if float_rule:
        _add_float_layer(builder, group, float_rule)
    else:
        _add_quantized_layer(builder, group, dtype)


def add_recurrent_layer(builder: EngineBuilder, group: FusionGroup) -> None:
    """Add an LSTM, GRU or RNN: the product of its sequence with W, then the recurrence in float."""
    flow = builder.flow
    memory = builder.memory
    node = group.core
    sequence, *states = flow.reads(node)
    dtype = multiplied_type(flow, node)
    float_type = memory.float_type(node.outputs[0] or node.outputs[-1])
    data = _read_sequence(builder, sequence, dtype, float_type)
    outputs = [memory.store(name, float_type, LINEAR) for name in filter(None, node.outputs)]
    gates = _gates_of(builder, node, float_type)
    builder.layers.append(_sequence_product(builder, node, dtype, data, gates))
    recurrence = EngineLayer(
        name=node.label,
        kind="Loop",
        inputs=(gates, *map(builder.read_float, states)),
        constants=(),
        outputs=tuple(outputs),
        nodes=(node.label,),
        fusion_rule="recurrence",
    )
    builder.layers.append(recurrence)
    memory.mark_relocatable(outputs)


def _read_sequence(
    builder: EngineBuilder, read: SlotRead, dtype: str, float_type: str
) -> LayerTensor:
    quantization = builder.flow.quantization(read)
    if dtype and quantization:
        return builder.read_quantized(read, quantization, LINEAR)
    return builder.read_float(read, float_type, LINEAR)


def _gates_of(builder: EngineBuilder, node: Node, float_type: str) -> LayerTensor:
    """Return the product of a recurrent node's whole sequence with W."""
    sequence_dims = builder.memory.dims(node.inputs[0])
    weight_dims = builder.memory.dims(node.inputs[1])
    dims = (*sequence_dims[:2], *weight_dims[:2])
    return LayerTensor(f"{node.label} gates", dims, float_type, LINEAR)


def _sequence_product(
    builder: EngineBuilder, node: Node, dtype: str, data: LayerTensor, gates: LayerTensor
) -> EngineLayer:
    weight = node.inputs[1]
    pair_labels = list(builder.flow.pair_labels(weight))
    return EngineLayer(
        name=" + ".join([*pair_labels[-1:], node.label]),
        kind="MatrixMultiply",
        inputs=(data,),
        constants=(LayerTensor(weight, builder.memory.dims(weight), dtype or gates.dtype),),
        outputs=(gates,),
        nodes=_unique([node.label, *pair_labels]),
        fusion_rule="recurrent-int8" if dtype else "float-operands",
    )


def _find_float_rule(flow: QuantizationFlow, node: Node, dtype: str) -> str:
    """Return the rule that makes a weighted layer multiply in float, or ""."""
    if not dtype:
        return "float-operands"
    weight_rank = flow.index.rank(node.inputs[1]) or 0
    if node.op == "ConvTranspose" and weight_rank > _RANK_2D:
        return "deconvolution-3d"
    channels = convolution_channels(flow.index, node)
    if channels is None or channels.groups <= 1 or is_depthwise(flow, node):
        return ""
    outputs_per_group = channels.outputs // channels.groups
    if channels.inputs % _GROUP_CHANNELS or outputs_per_group % _GROUP_CHANNELS:
        return "grouped-channels"
    return ""


def _add_quantized_layer(builder: EngineBuilder, group: FusionGroup, dtype: str) -> None:
    flow = builder.flow
    addend = group.addend
    addend_quantization = flow.quantization(addend) if addend else None
    result_quantization = flow.required.get(group.output)
    if addend is not None and addend_quantization is None:
        result_quantization = None
    inputs = _read_quantized_operands(builder, group)
    if result_quantization is not None:
        layout = THIRTY_TWO_WIDE if group.core.op in CONVOLUTIONS else LINEAR
        if addend and addend_quantization:
            inputs.append(builder.read_quantized(addend, addend_quantization, layout))
        result_type = result_quantization.dtype
    else:
        result_type = _float_result_type(builder, group, addend_quantization is not None)
        layout = _float_result_format(flow, group.core, result_type)
        if addend:
            inputs.append(builder.read_float(addend, result_type, layout))
    output = builder.memory.store(group.output, result_type, layout, result_quantization)
    rule = _quantized_rule(flow, group, result_quantization)
    _append_product(builder, _Product(group, dtype, rule), inputs, output)


def _read_quantized_operands(builder: EngineBuilder, group: FusionGroup) -> list[LayerTensor]:
    layout = LINEAR
    if has_few_channels(builder.flow, group.core):
        layout = LINEAR if group.has_pool else FOUR_WIDE
    elif group.core.op in CONVOLUTIONS:
        layout = THIRTY_TWO_WIDE
    inputs = []
    for read in _multiplied_reads(builder.flow, group):
        quantization = builder.flow.quantization(read)
        if quantization:
            inputs.append(builder.read_quantized(read, quantization, layout))
    return inputs


def _quantized_rule(
    flow: QuantizationFlow, group: FusionGroup, result_quantization: Quantization | None
) -> str:
    """Return the fusion rule of a weighted layer that multiplies in INT8 or FP8."""
    if group.addend is not None:
        return "residual-int8" if result_quantization else "residual-float"
    if group.has_pool:
        return "convolution-and-pool"
    if has_few_channels(flow, group.core):
        return "few-channels"
    if not result_quantization:
        return "float-result"
    if is_depthwise(flow, group.core):
        return "depthwise-int8"
    return "int8-operands"


def _float_result_type(builder: EngineBuilder, group: FusionGroup, is_dequantized: bool) -> str:
    """Return the type of an INT8 layer's float result.

    Where FP16 is merely allowed, the result is Float for a four-wide first convolution, which has
    no other kernel, for a graph output, and for an Add with the result of a separate DQ.
    """
    dtype = builder.memory.float_type(group.output)
    is_fp16_allowed = builder.memory.allow_fp16 and builder.memory.onnx_type(group.output) == FLOAT
    if dtype != HALF or not is_fp16_allowed:
        return dtype
    if is_dequantized or has_few_channels(builder.flow, group.core):
        return FLOAT
    if _ends_graph(builder.flow, group.output):
        return FLOAT
    return HALF


def _float_result_format(flow: QuantizationFlow, node: Node, dtype: str) -> str:
    """Return the memory format of an INT8 layer's float result: wide vectors of Half, else rows."""
    if dtype != HALF or node.op not in CONVOLUTIONS or has_few_channels(flow, node):
        return LINEAR
    return THIRTY_TWO_WIDE


def _ends_graph(flow: QuantizationFlow, tensor: str) -> bool:
    """Whether a tensor is a graph output, as it is or after reshapes."""
    for _ in range(len(flow.nodes)):
        if tensor in flow.outputs:
            return True
        reader = flow.sole_reader(tensor)
        if reader is None or reader.op not in _KEEPS_ORDER:
            return False
        tensor = reader.outputs[0]
    return False


def _add_float_layer(builder: EngineBuilder, group: FusionGroup, rule: str) -> None:
    dtype = builder.memory.float_type(group.output)
    layout = _float_format(builder, group.core, dtype)
    reads = _multiplied_reads(builder.flow, group)
    if group.addend:
        reads.append(group.addend)
    inputs = [builder.read_float(read, dtype, layout) for read in reads]
    output = builder.memory.store(group.output, dtype, layout)
    _append_product(builder, _Product(group, dtype, rule), inputs, output)


def _float_format(builder: EngineBuilder, node: Node, dtype: str) -> str:
    """Return the memory format in which a float layer reads and writes."""
    if node.op not in CONVOLUTIONS:
        return LINEAR
    if dtype != FLOAT:
        return CHANNEL_LAST
    lacks_tf32 = 0 < builder.target.sm < _TF32
    if lacks_tf32 or has_few_channels(builder.flow, node):
        return LINEAR
    return CHANNEL_LAST


def _multiplied_reads(flow: QuantizationFlow, group: FusionGroup) -> list[SlotRead]:
    """Return the computed operands of a weighted layer, and a computed bias of a Gemm."""
    first = group.padding or group.core
    data = [read for slot, read in flow.inputs(first) if slot == 0]
    others = [read for slot, read in flow.inputs(group.core) if slot]
    return data + others


def _append_product(
    builder: EngineBuilder, product: _Product, inputs: Iterable[LayerTensor], output: LayerTensor
) -> None:
    flow = builder.flow
    group = product.group
    constants = []
    pair_labels: list[str] = []
    for tensor in group.core.inputs[:2]:
        if tensor in flow.folded:
            constants.append(LayerTensor(tensor, builder.memory.dims(tensor), product.dtype))
            pair_labels.extend(flow.pair_labels(tensor))
    layer = EngineLayer(
        name=" + ".join([*pair_labels[-1:], *group.labels]),
        kind=_product_kind(flow, product),
        inputs=tuple(inputs),
        constants=tuple(constants),
        outputs=(output,),
        nodes=_unique([*group.labels, *pair_labels]),
        fusion_rule=product.rule,
    )
    builder.layers.append(layer)
    builder.memory.mark_relocatable([output])


def _product_kind(flow: QuantizationFlow, product: _Product) -> str:
    """Return the type of a weighted layer as TensorRT's inspector writes it."""
    node = product.group.core
    if product.group.has_pool:
        return "ConvActPool"
    if node.op == "ConvTranspose":
        return "CaskDeconvolution"
    if node.op != "Conv":
        return "MatrixMultiply"
    if product.dtype == INT8 and is_depthwise(flow, node):
        return "CudaDepthwiseConvolution"
    return "CaskConvolution"


def _unique(labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))
