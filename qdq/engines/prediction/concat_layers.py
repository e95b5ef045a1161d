"""Predicted copies into the output of a Concat, which layers otherwise write in place."""

from __future__ import annotations

import msgspec

from qdq.engines.engine import REFORMAT, EngineLayer, LayerTensor
from qdq.engines.prediction.engine_builder import EngineBuilder
from qdq.engines.prediction.fusion_group import FusionGroup
from qdq.engines.prediction.generated_layers import add_unfused_layer
from qdq.engines.prediction.memory_formats import LINEAR
from qdq.engines.prediction.qdq_propagation import Quantization, SlotRead


def add_concat(builder: EngineBuilder, group: FusionGroup) -> None:
    """Add the copies of those inputs of a Concat that no layer writes into its output."""
    memory = builder.memory
    reads = builder.flow.reads(group.core)
    if not reads or not all(map(memory.is_value, reads)):
        add_unfused_layer(builder, group)
        return
    quantization = builder.flow.moved_quantization(reads, group.output)
    if quantization is not None:
        dtype = quantization.dtype
        layout = memory.quantized_format(group.output, LINEAR)
    else:
        first = builder.read_float(reads[0])
        dtype = first.dtype
        layout = first.format
    output = memory.store(group.output, dtype, layout, quantization)
    for read in reads:
        _add_part(builder, group, read, quantization, output)
    memory.mark_relocatable([output])


def _add_part(
    builder: EngineBuilder,
    group: FusionGroup,
    read: SlotRead,
    quantization: Quantization | None,
    output: LayerTensor,
) -> None:
    """Convert one input of a Concat into its output, or copy it if no layer can write it there."""
    layers_before = len(builder.layers)
    if quantization is None:
        stored = builder.read_float(read, output.dtype, output.format)
    else:
        if read.quantization is not None and read.quantization != quantization:
            label = builder.flow.find_quantize_label(group.output, quantization)
            read = msgspec.structs.replace(read, q=label)
        stored = builder.read_quantized(read, quantization, output.format)
    is_converted = len(builder.layers) > layers_before
    if is_converted or builder.memory.place_in_concat(read.tensor):
        return
    copy = EngineLayer(
        name=f"{read.tensor} copy",
        kind=REFORMAT,
        inputs=(stored,),
        constants=(),
        outputs=(msgspec.structs.replace(stored, name=group.output),),
        nodes=(group.core.label,),
        fusion_rule="concat",
    )
    builder.layers.append(copy)
