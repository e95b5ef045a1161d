"""Predicted layers of point-wise operators and of operators that no fusion covers."""

from __future__ import annotations

from qdq.engines.engine import EngineLayer, LayerTensor
from qdq.engines.prediction.engine_builder import EngineBuilder
from qdq.engines.prediction.fusion_group import FusionGroup
from qdq.engines.prediction.memory_formats import FLOAT, FLOATS, LINEAR
from qdq.engines.prediction.moving_layers import add_moving_layer
from qdq.engines.prediction.qdq_propagation import QuantizationFlow, SlotRead
from qdq.graph.index import Node

#: Operators that become generated kernels, which convert their result themselves.
_GENERATED = (
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "Softmax",
    "LogSoftmax",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
)

#: Types of layers as TensorRT's inspector writes them, where they are not the operator's name.
_KINDS = {
    "Softmax": "SoftMaxV2",
    "Upsample": "Resize",
    "Split": "Slice",
    "Pad": "Slice",
    "ReduceMean": "Reduce",
    "ReduceSum": "Reduce",
    "ReduceMax": "Reduce",
    "ReduceMin": "Reduce",
    "ReduceL2": "Reduce",
    "ReduceProd": "Reduce",
}


def add_pointwise_layer(builder: EngineBuilder, group: FusionGroup) -> None:
    """Add a generated kernel of point-wise operators."""
    flow = builder.flow
    memory = builder.memory
    reads = _outer_reads(flow, group)
    if _is_moving(flow, group, reads):
        add_moving_layer(builder, group, reads, "PointWiseV2")
        return
    quantization = flow.required.get(group.output)
    inputs = [_read_pointwise_input(builder, read, quantization is not None) for read in reads]
    layout = max(inputs, key=_kernel_bytes).format if inputs else LINEAR
    output_dims = memory.dims(group.output)
    for position, stored in enumerate(inputs):
        if stored.dims == output_dims:
            inputs[position] = builder.convert(stored, "", layout)
    if quantization is not None:
        dtype = quantization.dtype
        layout = memory.quantized_format(group.output, layout)
    else:
        dtype = _generated_type(builder, group.output, inputs)
    output = memory.store(group.output, dtype, layout, quantization)
    layer = EngineLayer(
        name=_pointwise_name(group),
        kind="PointWiseV2",
        inputs=tuple(inputs),
        constants=(),
        outputs=(output,),
        nodes=group.labels,
        fusion_rule="pointwise" if quantization is None else "quantized-pointwise",
    )
    builder.layers.append(layer)
    memory.mark_relocatable([output])


def add_unfused_layer(builder: EngineBuilder, group: FusionGroup) -> None:
    """Add an operator that is fused with no other."""
    node = group.core
    memory = builder.memory
    reads = builder.flow.reads(node)
    kind = _KINDS.get(node.op, node.op)
    if _moves_all_inputs(builder, node, reads):
        add_moving_layer(builder, group, reads, kind)
        return
    inputs = [builder.read_float(read, "", LINEAR) for read in reads]
    quantized_output = _store_quantized(builder, node)
    float_outputs = []
    if quantized_output is None or group.output not in builder.flow.required:
        for name in filter(None, node.outputs):
            dtype = _generated_type(builder, name, inputs)
            float_outputs.append(memory.store(name, dtype, LINEAR))
    outputs = list(float_outputs)
    if quantized_output is not None:
        outputs.append(quantized_output)
    layer = EngineLayer(
        name=group.name,
        kind=kind,
        inputs=tuple(inputs),
        constants=(),
        outputs=tuple(outputs),
        nodes=group.labels,
        fusion_rule="alone" if quantized_output is None else "generated",
    )
    builder.layers.append(layer)
    memory.mark_relocatable(float_outputs)


def _outer_reads(flow: QuantizationFlow, group: FusionGroup) -> list[SlotRead]:
    """Return the distinct reads of tensors from outside a group, or through a Q."""
    inner_tensors: set[str] = set()
    for node in group.nodes:
        inner_tensors.update(node.outputs)
    reads: dict[SlotRead, None] = {}
    for node in group.nodes:
        for _, read in flow.inputs(node):
            if read.tensor not in inner_tensors or read.quantization:
                reads[read] = None
    return list(reads)


def _is_moving(flow: QuantizationFlow, group: FusionGroup, reads: list[SlotRead]) -> bool:
    """Whether Q and DQ move past a point-wise group, which then runs on its one quantized input."""
    if len(reads) != 1 or not flow.quantization(reads[0]):
        return False
    return all(map(flow.commutes, group.nodes))


def _moves_all_inputs(builder: EngineBuilder, node: Node, reads: list[SlotRead]) -> bool:
    """Whether Q and DQ move past a node, and every computed input is a value that it moves."""
    if not builder.flow.commutes(node):
        return False
    moved = builder.flow.moved_inputs(node)
    if not moved or len(moved) != len(reads):
        return False
    return all(map(builder.memory.is_value, moved))


def _read_pointwise_input(
    builder: EngineBuilder, read: SlotRead, writes_quantized: bool
) -> LayerTensor:
    quantization = builder.flow.quantization(read)
    if quantization and writes_quantized:
        return builder.read_quantized(read, quantization, "")
    return builder.read_float(read)


def _kernel_bytes(tensor: LayerTensor) -> float:
    """Return the size of an input; scalars do not count."""
    return tensor.bytes if tensor.dims else 0.0


def _pointwise_name(group: FusionGroup) -> str:
    if len(group.labels) == 1:
        return group.labels[0]
    return f"PWN({', '.join(group.labels)})"


def _generated_type(builder: EngineBuilder, tensor: str, inputs: list[LayerTensor]) -> str:
    """Return the float type in which a generated kernel writes a tensor.

    Where FP16 is allowed it is that of the first float input.
    """
    dtype = builder.memory.onnx_type(tensor)
    if not builder.memory.allow_fp16 or dtype != FLOAT:
        return dtype
    for stored in inputs:
        if stored.dtype in FLOATS:
            return stored.dtype
    return dtype


def _store_quantized(builder: EngineBuilder, node: Node) -> LayerTensor | None:
    """Store the INT8 result that a generated kernel writes if all Q that read it agree."""
    output = node.outputs[0]
    quantizations = {builder.flow.required.get(output)}
    for read in builder.flow.quantized_reads.get(output, ()):
        quantizations.add(read.quantization)
    quantizations.discard(None)
    if node.op not in _GENERATED or len(quantizations) != 1:
        return None
    quantization = quantizations.pop()
    if quantization is None:
        return None
    layout = builder.memory.quantized_format(output, LINEAR)
    return builder.memory.store(output, quantization.dtype, layout, quantization)
