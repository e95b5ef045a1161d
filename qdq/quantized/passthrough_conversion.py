"""Operators on the integers between a Q and its DQ, moved after the DQ or folded into it."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from qdq.quantized.graph_writer import (
    FoldedTensor,
    GraphWriter,
    IntegerFormat,
    Levels,
    copy_node,
    input_name,
    remove_suffix,
)
from qdq.quantized.qdq_conversion import append_quantize

#: Operators that move, pick or interpolate the values of their first input and keep its scale.
_VALUE_MOVERS = (
    "MaxPool",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Gather",
    "GatherElements",
    "GatherND",
    "Split",
    "Resize",
    "Identity",
    "DepthToSpace",
    "SpaceToDepth",
    "Expand",
    "Tile",
    "Dropout",
)

#: Operators that keep the scale of their quantized inputs. No slots means all inputs.
SCALE_KEEPING_SLOTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_VALUE_MOVERS, (0,)),
    "Pad": (0, 2),
    "Concat": (),
}

#: Operators whose result depends on the order of the integers alone and is not quantized.
_ORDER_OPERATORS = ("ArgMax", "ArgMin")

#: The input slot of a Pad that holds the value it adds.
_PAD_VALUE_SLOT = 2


def convert_passthrough(graph: GraphWriter, node: NodeProto) -> None:
    """Write an operator that reads integers.

    An operator that keeps their scale runs between DequantizeLinear and QuantizeLinear. A Clip or
    Cast before a DQ is folded into it. Any other operator stays.
    """
    integer_format = graph.quantized.get(node.input[0])
    if integer_format is None or not node.output:
        graph.append(node)
        return
    is_foldable = graph.is_only_dequantized(node.output[0])
    levels = _find_clipped_levels(graph, node) if is_foldable else None
    if levels is not None:
        _fold_clip(graph, node, levels)
    elif is_foldable and _is_cast_to_own_type(graph, node, integer_format):
        _fold_cast(graph, node, integer_format)
    elif _has_kept_scale(graph, node, integer_format):
        _move_after_dequantize(graph, node, integer_format)
    else:
        graph.append(node)


def _find_clipped_levels(graph: GraphWriter, node: NodeProto) -> Levels | None:
    """Return the least and the largest integer that a Clip lets through.

    None for another operator, and for a Clip whose bounds are computed.
    """
    if node.op_type != "Clip":
        return None
    levels = graph.levels(graph.quantized[node.input[0]])
    if levels is None:
        return None
    bounds = list(filter(None, node.input[1:3]))
    if not graph.has_stored(*bounds):
        return None
    least, largest = levels
    low = _read_bound(graph, node, 1, default=least)
    high = _read_bound(graph, node, 2, default=largest)
    return max(low, least), min(high, largest)


def _read_bound(graph: GraphWriter, clip: NodeProto, slot: int, default: int) -> int:
    name = input_name(clip, slot)
    if not name:
        return default
    values = graph.read_values(name).reshape(-1)
    return int(values[0])


def _fold_clip(graph: GraphWriter, node: NodeProto, levels: Levels) -> None:
    low, high = levels
    graph.folded_tensors[node.output[0]] = FoldedTensor(node.input[0], levels)
    graph.record(
        node, f"lets the integers {low} to {high} through; the pair around it has that range"
    )


def _is_cast_to_own_type(
    graph: GraphWriter, node: NodeProto, integer_format: IntegerFormat
) -> bool:
    """Whether a node casts integers to the type that they have."""
    zero_point = graph.stored.get(integer_format.zero_point)
    if node.op_type != "Cast" or zero_point is None:
        return False
    targets = [attribute.i for attribute in node.attribute if attribute.name == "to"]
    return targets == [zero_point.data_type]


def _fold_cast(graph: GraphWriter, node: NodeProto, integer_format: IntegerFormat) -> None:
    source = node.input[0]
    result = node.output[0]
    unfolded = FoldedTensor(source, None)
    graph.folded_tensors[result] = graph.folded_tensors.get(source, unfolded)
    graph.quantized[result] = integer_format
    graph.record(node, "changes nothing; it is removed")


def _has_kept_scale(graph: GraphWriter, node: NodeProto, integer_format: IntegerFormat) -> bool:
    """Whether a node can read floats in place of the integers, with one scale."""
    if node.op_type not in SCALE_KEEPING_SLOTS and node.op_type not in _ORDER_OPERATORS:
        return False
    if integer_format.axis is not None:
        return False
    return not graph.has_several_values(integer_format.scale)


def _move_after_dequantize(
    graph: GraphWriter, node: NodeProto, integer_format: IntegerFormat
) -> None:
    """Write a node between the DequantizeLinear of its inputs and the QuantizeLinear after it.

    The result of an operator on the order of the integers is not quantized.
    """
    float_node = _with_float_inputs(graph, node, integer_format)
    graph.record(node, "reads integers; it is moved after the DequantizeLinear")
    if node.op_type in _ORDER_OPERATORS:
        graph.append(float_node)
        return
    float_results: dict[str, str] = {}
    for name in _quantized_results(node):
        float_results[name] = graph.unique_name(remove_suffix(name))
    for slot, name in enumerate(node.output):
        float_node.output[slot] = float_results.get(name, name)
    graph.append(float_node)
    for result, float_result in float_results.items():
        append_quantize(graph, float_result, integer_format.parameters, result)


def _quantized_results(node: NodeProto) -> list[str]:
    """Return the quantized results of a node: all of a Split, the first of any other operator."""
    results = [name for name in node.output if name]
    return results if node.op_type == "Split" else results[:1]


def _with_float_inputs(
    graph: GraphWriter, node: NodeProto, integer_format: IntegerFormat
) -> NodeProto:
    """Return a copy of a node whose quantized inputs are dequantized."""
    float_node = copy_node(node)
    slots = SCALE_KEEPING_SLOTS.get(node.op_type, (0,))
    for slot, name in enumerate(node.input):
        if name and (not slots or slot in slots):
            input_format = graph.quantized.get(name, integer_format)
            float_node.input[slot] = graph.dequantize(name, input_format)
    has_pad_value = bool(input_name(node, _PAD_VALUE_SLOT))
    if node.op_type == "Pad" and not has_pad_value and not _has_zero_at_zero(graph, integer_format):
        _pad_with_integer_zero(graph, float_node, integer_format)
    return float_node


def _has_zero_at_zero(graph: GraphWriter, integer_format: IntegerFormat) -> bool:
    """Whether the integer 0 represents zero."""
    zero_point = integer_format.zero_point
    if zero_point not in graph.stored:
        return True
    return not graph.read_values(zero_point).any()


def _pad_with_integer_zero(
    graph: GraphWriter, pad: NodeProto, integer_format: IntegerFormat
) -> None:
    """Make a Pad add the float value of the integer 0, its default on integers (ONNX Pad)."""
    dtype = graph.read_values(integer_format.zero_point).dtype
    result = pad.output[0]
    zero = graph.store(np.zeros((), dtype), f"{result}_value")
    while len(pad.input) < _PAD_VALUE_SLOT:
        pad.input.append("")
    del pad.input[_PAD_VALUE_SLOT + 1 :]
    value = graph.dequantize(zero, integer_format)
    if len(pad.input) > _PAD_VALUE_SLOT:
        pad.input[_PAD_VALUE_SLOT] = value
    else:
        pad.input.append(value)
