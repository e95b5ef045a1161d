"""Predicted layers that only move values or take their maximum, shuffles, and pools."""

from __future__ import annotations

from collections.abc import Sequence

from qdq.engines.engine import NO_OP, EngineLayer, LayerTensor
from qdq.engines.prediction.engine_builder import EngineBuilder
from qdq.engines.prediction.fusion_group import FusionGroup
from qdq.engines.prediction.memory_formats import (
    KEEPS_FORMAT,
    LINEAR,
    THIRTY_TWO_WIDE,
    TWO_WIDE,
)
from qdq.engines.prediction.qdq_propagation import Quantization, SlotRead
from qdq.graph.index import Node


def add_moving_layer(
    builder: EngineBuilder, group: FusionGroup, reads: Sequence[SlotRead], kind: str, rule: str = ""
) -> None:
    """Add a layer past which Q and DQ move.

    It runs in INT8 if its inputs are in INT8 or all readers of its output require it. `rule`
    replaces the rule that follows from its type.
    """
    quantization = builder.flow.moved_quantization(reads, group.output)
    layout = _moving_format(builder, group, reads[0], quantization)
    if quantization is not None:
        inputs = [builder.read_quantized(read, quantization, layout) for read in reads]
        dtype = quantization.dtype
        rule = rule or "commutes"
    else:
        inputs = [builder.read_float(read, "", layout) for read in reads]
        dtype = inputs[0].dtype
        rule = rule or "moves-float"
    outputs = []
    for name in filter(None, group.nodes[-1].outputs):
        outputs.append(builder.memory.store(name, dtype, layout, quantization))
    layer = EngineLayer(
        name=group.name,
        kind=kind,
        inputs=tuple(inputs),
        constants=(),
        outputs=tuple(outputs),
        nodes=group.labels,
        fusion_rule=rule,
    )
    builder.layers.append(layer)
    builder.memory.mark_relocatable(outputs)


def add_shuffle(builder: EngineBuilder, group: FusionGroup) -> None:
    """Add consecutive reshapes and transposes."""
    read = builder.flow.reads(group.nodes[0])[0]
    is_view = all(_is_view(builder, node) for node in group.nodes)
    if is_view:
        add_moving_layer(builder, group, [read], NO_OP, "view")
    else:
        add_moving_layer(builder, group, [read], "Shuffle")


def add_pool(builder: EngineBuilder, group: FusionGroup) -> None:
    """Add a pool, which runs in INT8 with pairs before and after it."""
    flow = builder.flow
    read = flow.reads(group.core)[0]
    if flow.commutes(group.core):
        if flow.moved_quantization([read], group.output) is not None:
            add_moving_layer(builder, group, [read], "CudaPooling")
        else:
            _add_float_pool(builder, group, read, "moves-float")
        return
    quantization = flow.quantization(read)
    result_quantization = flow.required.get(group.output)
    if quantization is None or result_quantization is None:
        _add_float_pool(builder, group, read, "float-pool")
        return
    source = builder.read_quantized(read, quantization, THIRTY_TWO_WIDE)
    result = builder.memory.store(
        group.output, result_quantization.dtype, THIRTY_TWO_WIDE, result_quantization
    )
    builder.layers.append(_pool_layer(group, "CudaPooling", source, result, "quantized-pool"))


def _add_float_pool(builder: EngineBuilder, group: FusionGroup, read: SlotRead, rule: str) -> None:
    """Add a float pool. No kernel reads thirty-two-wide Half, and two-wide is the next format."""
    source = builder.read_float(read)
    if source.format == THIRTY_TWO_WIDE:
        source = builder.convert(source, "", TWO_WIDE)
    result = builder.memory.store(group.output, source.dtype, source.format)
    kind = _float_pool_kind(group.core, source.format)
    builder.layers.append(_pool_layer(group, kind, source, result, rule))


def _float_pool_kind(node: Node, layout: str) -> str:
    """Return the type of a float pool layer as TensorRT's inspector writes it."""
    is_max = node.op == "MaxPool"
    if layout == TWO_WIDE or (is_max and layout == LINEAR):
        return "TiledPooling"
    return "CudaPooling" if is_max else "CaskPooling"


def _pool_layer(
    group: FusionGroup, kind: str, source: LayerTensor, result: LayerTensor, rule: str
) -> EngineLayer:
    return EngineLayer(
        name=group.name,
        kind=kind,
        inputs=(source,),
        constants=(),
        outputs=(result,),
        nodes=group.labels,
        fusion_rule=rule,
    )


def _moving_format(
    builder: EngineBuilder, group: FusionGroup, read: SlotRead, quantization: Quantization | None
) -> str:
    """Return the memory format in which a moving layer reads and writes.

    Rows where it moves values across dimensions, else the format of its first input.
    """
    if group.family == "pool":
        return THIRTY_TWO_WIDE
    if group.core.op not in KEEPS_FORMAT:
        return LINEAR
    stored = builder.memory.find(read.tensor, quantization)
    if stored is None:
        return LINEAR
    return stored.format


def _is_view(builder: EngineBuilder, node: Node) -> bool:
    """Whether a shuffle keeps the order of values in memory.

    A Transpose does if it moves only dimensions of size one.
    """
    if node.op != "Transpose":
        return True
    dims = builder.memory.dims(node.inputs[0])
    rank = len(dims)
    order = node.attribute("perm") or reversed(range(rank))
    moved_axes = []
    for axis in order:
        if axis < rank and dims[axis] != 1:
            moved_axes.append(axis)
    return moved_axes == sorted(moved_axes)
