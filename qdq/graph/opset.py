"""The opset of a model, and its conversion to the one that per-channel Q/DQ needs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, version_converter

from qdq.errors import ModelError, first_line
from qdq.graph.bodies import all_graphs, all_tensors, list_names, node_title
from qdq.graph.plugins import DEFAULT_DOMAINS, declare_plugins, restore_plugins
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE

#: `axis` on QuantizeLinear and DequantizeLinear came with opset 13 (ONNX operator changelog).
PER_CHANNEL_OPSET = 13

#: Q/DQ of float16 and bfloat16 values came with opset 19 (ONNX operator changelog).
FLOAT16_OPSET = 19

#: The oldest opset whose operators the ONNX version converter can raise. From opset 6 it leaves the
#: slopes of a PRelu along another axis, and moves the operand that Add and similar operators
#: broadcast along `axis` to another axis (onnx 1.23).
OLDEST_OPSET = 7

#: The opset in which Scan had a batch dimension (ONNX operator changelog); the converter keeps it.
_BATCHED_SCAN_OPSET = 8

#: Until IR version 4 every initializer had to be listed as a graph input (ONNX IR specification).
FREE_INITIALIZERS_IR = 4


_SHORT_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def raise_opset(
    model: ModelProto, least: int = PER_CHANNEL_OPSET, kind: str = ""
) -> tuple[ModelProto, tuple[str, ...]]:
    """Return the model at an opset with per-channel Q/DQ, and a note for each change.

    The opset is at least `least`, and has Q/DQ of the float types of the model's own scales. `kind`
    is the type that `least` is for, as ``FP8``. The model itself comes back where nothing had to
    change.
    Operators are converted by ONNX's version converter; node metadata, which it drops, is restored.
    Raises ModelError for an opset below 7 or a model that the converter refuses.
    """
    opset = default_opset(model)
    qdq_opset = _find_qdq_opset(model)
    target_opset = max(qdq_opset, least)
    _require_convertible(model, opset)
    if opset >= target_opset and model.ir_version >= FREE_INITIALIZERS_IR:
        return model, ()
    notes = []
    if opset < target_opset:
        raised = _convert_opset(model, opset, target_opset)
        label = f"{kind} Q/DQ" if kind and target_opset > qdq_opset else "Q/DQ"
        notes.append(f"opset raised from {opset} to {target_opset}, which {label} needs")
    else:
        raised = _copy_model(model)
    oldest_ir = _oldest_ir_version(raised)
    if raised.ir_version < oldest_ir:
        notes.append(f"IR version raised from {raised.ir_version} to {oldest_ir}")
        raised.ir_version = oldest_ir
    return raised, tuple(notes)


def default_opset(model: ModelProto) -> int:
    """Return the version of ONNX's own operator set that the model imports.

    A model that imports none and needs none, such as one of trees alone, counts as new enough.
    Raises ModelError for a model that imports none and has operators of ONNX.
    """
    for entry in model.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            return int(entry.version)
    for i, node in enumerate(model.graph.node):
        if node.domain in DEFAULT_DOMAINS:
            title = node_title(node, i)
            raise ModelError(
                f"node {title} ({node.op_type}) is an operator of ONNX, "
                "but the model imports no opset of ONNX. Export it again."
            )
    return FLOAT16_OPSET


def _require_convertible(model: ModelProto, opset: int) -> None:
    """Raise ModelError for a model of an opset, or with a Scan, that cannot be converted."""
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"opset {opset} is too old. Export the model with opset {OLDEST_OPSET} or newer."
        )
    if opset > _BATCHED_SCAN_OPSET:
        return
    scan = _find_scan(model.graph)
    if scan:
        raise ModelError(
            f"node {scan} (Scan) has a batch dimension, "
            f"which Scan lost after opset {_BATCHED_SCAN_OPSET}. "
            f"Export the model with opset {_BATCHED_SCAN_OPSET + 1} or newer."
        )


def _find_scan(main_graph: GraphProto) -> str:
    """Return the title of the first Scan in a graph and its bodies, "" where there is none."""
    for graph in all_graphs(main_graph):
        for i, node in enumerate(graph.node):
            if node.op_type == "Scan" and node.domain in DEFAULT_DOMAINS:
                return node_title(node, i)
    return ""


def _find_qdq_opset(model: ModelProto) -> int:
    """Return the oldest opset with per-channel Q/DQ of the types of a model's scales."""
    graphs = list(all_graphs(model.graph))
    short_tensors = set(chain.from_iterable(map(_list_short_tensors, graphs)))
    if not short_tensors:
        return PER_CHANNEL_OPSET
    for node in chain.from_iterable(graph.node for graph in graphs):
        if node.op_type in (QUANTIZE, DEQUANTIZE) and short_tensors.intersection(node.input[1:2]):
            return FLOAT16_OPSET
    return PER_CHANNEL_OPSET


def _list_short_tensors(graph: GraphProto) -> Iterator[str]:
    """Yield the tensors of a graph that are declared or stored as float16 or bfloat16."""
    for tensor in graph.initializer:
        if tensor.data_type in _SHORT_FLOATS:
            yield tensor.name
    for value in graph.input:
        if value.type.tensor_type.elem_type in _SHORT_FLOATS:
            yield value.name
    for node in graph.node:
        if node.op_type in ("Cast", "Constant") and _attribute_type(node) in _SHORT_FLOATS:
            yield from node.output


def holds_short_floats(model: ModelProto) -> bool:
    """Whether a model stores, reads or casts to float16 or bfloat16 anywhere."""
    if any(tensor.data_type in _SHORT_FLOATS for tensor in all_tensors(model.graph)):
        return True
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _SHORT_FLOATS:
                return True
        for node in graph.node:
            if _attribute_type(node) in _SHORT_FLOATS:
                return True
    return False


def _attribute_type(node: NodeProto) -> int:
    """Return the type that an attribute of a Cast, Constant or similar operator specifies."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return int(attribute.t.data_type)
        if attribute.name in ("to", "dtype"):
            return int(attribute.i)
    return TensorProto.UNDEFINED


def _oldest_ir_version(model: ModelProto) -> int:
    """Return the oldest IR version that allows a model's opsets and free initializers."""
    opset_ir = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    return max(FREE_INITIALIZERS_IR, opset_ir)


def _convert_opset(model: ModelProto, opset: int, target_opset: int) -> ModelProto:
    convertible = declare_plugins(_with_free_initializers(model))
    try:
        raised = version_converter.convert_version(convertible, target_opset)
    except Exception as error:
        reason = first_line(error)
        raise ModelError(
            f"opset {opset} could not be raised to {target_opset} ({reason}). "
            f"Export the model with opset {target_opset} or newer."
        ) from error
    restore_plugins(raised, model)
    _restore_metadata(model, raised)
    return raised


def _with_free_initializers(model: ModelProto) -> ModelProto:
    """Return a model of an IR version that allows initializers which are not inputs.

    ONNX Runtime's quantizer adds them to models of any IR version.
    """
    if model.ir_version >= FREE_INITIALIZERS_IR:
        return model
    initializer_names = list_names(model.graph.initializer)
    if set(initializer_names) <= set(list_names(model.graph.input)):
        return model
    copy = _copy_model(model)
    copy.ir_version = FREE_INITIALIZERS_IR
    return copy


def _restore_metadata(model: ModelProto, raised: ModelProto) -> None:
    """Copy the metadata of nodes to those of the same first output that have none."""
    metadata = {}
    for node in model.graph.node:
        if node.metadata_props and node.output:
            metadata[node.output[0]] = node.metadata_props
    for node in raised.graph.node:
        if node.output and node.output[0] in metadata and not node.metadata_props:
            node.metadata_props.extend(metadata[node.output[0]])


def _copy_model(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
