"""Raising a model to the opset that per-channel Q/DQ needs, and saying so."""

from __future__ import annotations

import onnx
from onnx import version_converter

from qdq.errors import ModelError, first_line

#: `axis` on QuantizeLinear and DequantizeLinear came with opset 13 (ONNX operator changelog).
PER_CHANNEL_OPSET = 13

#: Q/DQ of float16 values came with opset 19 (ONNX operator changelog).
FLOAT16_OPSET = 19

#: The oldest opset whose operators the ONNX version converter can raise: of opset 6 it leaves the slopes of a PRelu along another
#: axis, and puts what Add and the like broadcast along an axis on another one (onnx 1.23).
OLDEST_OPSET = 7

#: The opset in which Scan had a batch dimension, which the converter does not take away (ONNX operator changelog).
_BATCHED_SCAN_OPSET = 8

#: Until IR version 4 every initializer had to be listed as a graph input (ONNX IR specification).
FREE_INITIALIZERS_IR = 4


def raise_opset(
    model: onnx.ModelProto, least: int = PER_CHANNEL_OPSET
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model at an opset of at least `least` that has Q/DQ of its types, and one note for each thing raised.

    The model itself comes back where nothing had to change. Operators are converted by ONNX's
    own version converter; node metadata, which it drops, is put back.
    Raises ModelError for an opset below 7 or a model that the converter refuses.
    """
    opset, needed = default_opset(model), max(_needed_opset(model), least)
    if opset < OLDEST_OPSET:
        raise ModelError(f"opset {opset} is too old; export it with opset {OLDEST_OPSET} or newer")
    if opset <= _BATCHED_SCAN_OPSET and (scan := _scan_in(model.graph)):
        says = f"node {scan} (Scan) has a batch dimension, which it lost after opset {_BATCHED_SCAN_OPSET}"
        raise ModelError(f"{says}; export it with opset {_BATCHED_SCAN_OPSET + 1} or newer")
    if opset >= needed and model.ir_version >= FREE_INITIALIZERS_IR:
        return model, ()
    raised, notes = _with_opset(model, opset, needed)
    oldest = max(
        FREE_INITIALIZERS_IR,
        onnx.helper.find_min_ir_version_for(raised.opset_import, ignore_unknown=True),
    )
    if raised.ir_version < oldest:
        notes.append(f"IR version raised from {raised.ir_version} to {oldest}")
        raised.ir_version = oldest
    return raised, tuple(notes)


def _scan_in(graph: onnx.GraphProto) -> str:
    """Return what the first Scan of a graph and its bodies is called, "" where there is none."""
    for i, node in enumerate(graph.node):
        if node.op_type == "Scan" and node.domain in ("", "ai.onnx"):
            return node.name or f"#{i}"
    bodies = (
        body
        for node in graph.node
        for a in node.attribute
        for body in (*([a.g] if a.HasField("g") else []), *a.graphs)
    )
    return next(filter(None, map(_scan_in, bodies)), "")


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operator set that the model imports; one that needs none, as of trees alone, counts as new enough.

    Raises ModelError for one that imports none and has such operators.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    for i, node in enumerate(model.graph.node):
        if node.domain in ("", "ai.onnx"):
            raise ModelError(
                f"node {node.name or f'#{i}'} ({node.op_type}) is an operator of ONNX, but the model imports no opset of ONNX; export it again"
            )
    return FLOAT16_OPSET


def _needed_opset(model: onnx.ModelProto) -> int:
    graph = model.graph
    types = {t.data_type for t in graph.initializer} | {
        i.type.tensor_type.elem_type for i in graph.input
    }
    for node in graph.node:
        if node.op_type in ("Cast", "Constant"):
            types.update(
                a.t.data_type if a.HasField("t") else a.i
                for a in node.attribute
                if a.name in ("to", "value")
            )
    return FLOAT16_OPSET if onnx.TensorProto.FLOAT16 in types else PER_CHANNEL_OPSET


def _with_opset(
    model: onnx.ModelProto, opset: int, needed: int
) -> tuple[onnx.ModelProto, list[str]]:
    if opset >= needed:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy, []
    try:
        raised = version_converter.convert_version(_with_free_initializers(model), needed)
    except Exception as error:
        raise ModelError(
            f"opset {opset} could not be raised to {needed} ({first_line(error)}); export it with opset {needed} or newer"
        ) from error
    _restore_metadata(model, raised)
    return raised, [
        f"opset raised from {opset} to {needed}, which {'FP8 ' if needed > _needed_opset(model) else ''}Q/DQ needs"
    ]


def _with_free_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of an IR version that allows its initializers: ONNX Runtime's quantizer adds some that are no inputs, whatever the version."""
    listed = {i.name for i in model.graph.input}
    if model.ir_version >= FREE_INITIALIZERS_IR or all(
        t.name in listed for t in model.graph.initializer
    ):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = FREE_INITIALIZERS_IR
    return copy


def _restore_metadata(model: onnx.ModelProto, raised: onnx.ModelProto) -> None:
    kept = {
        node.output[0]: node.metadata_props
        for node in model.graph.node
        if node.metadata_props and node.output
    }
    for node in raised.graph.node:
        if node.output and node.output[0] in kept and not node.metadata_props:
            node.metadata_props.extend(kept[node.output[0]])
