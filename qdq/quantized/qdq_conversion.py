"""QuantizeLinear and DequantizeLinear as plain halves of pairs.

An activation that was folded into a Q, or a scale of a DQ that differs from its Q's, becomes a
separate node.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from qdq.graph.metadata import LEVELS_KEY
from qdq.graph.quantized_operators import MICROSOFT, QUANTIZE
from qdq.quantized.graph_writer import (
    GraphWriter,
    IntegerFormat,
    copy_node,
    input_name,
)

#: Scales of a Q and its DQ that differ by less count as equal, written with fewer digits.
_SAME_SCALE = 1e-3

#: The largest relative distance of a bound from a whole number: FP32 scales are exact to 6e-8.
_WHOLE = 1e-6

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

#: The two meanings of a Q without a zero point.
_UINT8 = (0, 255)
_INT8 = (-128, 127)


def append_quantize(graph: GraphWriter, tensor: str, parameters: list[str], result: str) -> None:
    """Append a QuantizeLinear with the given scale and zero point."""
    name = graph.unique_name(f"{tensor}_{QUANTIZE}")
    inputs = [tensor, *parameters]
    node = helper.make_node(QUANTIZE, inputs, [result], name=name)
    write_quantize(graph, node)


def write_quantize(graph: GraphWriter, node: NodeProto) -> None:
    """Write a QuantizeLinear and the activation that was folded into it."""
    plain = _with_onnx_domain(graph, node)
    tensor = node.input[0]
    integer_format = read_integer_format(node)
    graph.quantized[node.output[0]] = integer_format
    is_computed = tensor not in graph.stored
    if is_computed and not integer_format.zero_point and not _has_output_type(node):
        _assume_levels(graph, node)
    is_produced = tensor in graph.produced
    has_range_from_zero = graph.has_range_from_zero(integer_format)
    if has_range_from_zero and is_produced and tensor not in graph.nonnegative:
        plain = copy_node(plain)
        plain.input[0] = _write_activation(graph, node, integer_format)
    graph.append(plain)


def _assume_levels(graph: GraphWriter, node: NodeProto) -> None:
    """Choose the integers of a Q without a zero point by the sign of its input."""
    if node.input[0] in graph.nonnegative:
        levels = _UINT8
        convention = "UINT8, as in ONNX"
    else:
        levels = _INT8
        convention = "INT8, as in TensorRT"
    graph.assumed_levels[node.output[0]] = levels
    graph.record(node, f"has no zero point; its type is taken to be {convention}")


def _write_activation(graph: GraphWriter, node: NodeProto, integer_format: IntegerFormat) -> str:
    """Write the activation that was folded into a Q whose range begins at zero.

    Returns the name of its result. ONNX Runtime's quantizer folds Relu, and Clip from 0 to 6 or 1
    as in hard-swish. The range of a folded Clip ends exactly at that whole number, which a
    calibrated maximum of other values hardly does.
    """
    tensor = node.input[0]
    bound = _find_whole_bound(graph, integer_format)
    if bound is None:
        _record_activation(graph, node, "Relu", "Relu")
        return graph.add("Relu", [tensor], f"{tensor}_relu")
    _record_activation(graph, node, "Clip", f"Clip from 0 to {bound}")
    dtype = graph.read_values(integer_format.scale).dtype
    least = graph.store(np.array(0, dtype), f"{tensor}_least")
    largest = graph.store(np.array(bound, dtype), f"{tensor}_largest")
    inputs = [tensor, least, largest]
    return graph.add("Clip", inputs, f"{tensor}_clip")


def _record_activation(graph: GraphWriter, node: NodeProto, op: str, activation: str) -> None:
    tensor = node.input[0]
    graph.record(
        node, f"clips {tensor!r} as the {activation} that was folded into it; the {op} is restored"
    )


def _find_whole_bound(graph: GraphWriter, integer_format: IntegerFormat) -> int | None:
    """Return the whole number that a range from zero ends at, None for any other end.

    The range has all levels of the type, or 7 bits of them in a reduced range.
    """
    levels = graph.levels(integer_format)
    scale = integer_format.scale
    if levels is None or scale not in graph.stored:
        return None
    if graph.has_several_values(scale):
        return None
    scales = graph.read_values(scale)
    step = float(scales.flat[0])
    all_steps = levels[1] - levels[0]
    for steps in (all_steps, all_steps // 2):
        end = step * steps
        whole = round(end)
        distance = abs(end - whole)
        if whole >= 1 and distance < _WHOLE * end:
            return whole
    return None


def write_dequantize(graph: GraphWriter, node: NodeProto) -> None:
    """Write a DequantizeLinear with the scale of its Q.

    A Mul restores a scale that differs from the Q's.
    """
    plain = _read_origin(graph, node)
    dq_format = read_integer_format(node)
    q_format = graph.quantized.get(plain.input[0])
    if graph.has_range_from_zero(q_format or dq_format):
        graph.nonnegative.add(node.output[0])
    ratio = _find_ratio(graph, q_format, dq_format)
    if q_format is None or ratio is None:
        graph.append(plain)
        return
    _write_rescaled(graph, node, plain, q_format.scale, ratio)


def _read_origin(graph: GraphWriter, node: NodeProto) -> NodeProto:
    """Return a DQ that reads the tensor before a folded Clip or Cast, with the levels it holds."""
    plain = _with_onnx_domain(graph, node)
    origin = node.input[0]
    levels = None
    if origin in graph.folded_tensors:
        origin, levels = graph.folded_tensors[origin]
    if levels is None:
        levels = graph.assumed_levels.get(origin)
    if levels is None and origin == node.input[0]:
        return plain
    copy = copy_node(plain)
    copy.input[0] = origin
    if levels is not None:
        least, largest = levels
        copy.metadata_props.add(key=LEVELS_KEY, value=f"{least} {largest}")
    return copy


def _write_rescaled(
    graph: GraphWriter, node: NodeProto, plain: NodeProto, q_scale: str, ratio: float
) -> None:
    """Write a DQ with the scale of its Q, and a Mul by the ratio of both scales."""
    result = node.output[0]
    unscaled = graph.unique_name(f"{result}_unscaled")
    rescaled = copy_node(plain)
    rescaled.input[1] = q_scale
    rescaled.output[0] = unscaled
    graph.append(rescaled)
    value = np.array(ratio, np.float32)
    factor = graph.store(value, f"{result}_ratio")
    name = graph.unique_name(f"{node.name}_Mul")
    scaling = helper.make_node("Mul", [unscaled, factor], [result], name=name)
    graph.append(scaling)
    graph.record(
        node, f"has {ratio:.6g} times the scale of its QuantizeLinear; a Mul applies that factor"
    )


def _find_ratio(
    graph: GraphWriter, q_format: IntegerFormat | None, dq_format: IntegerFormat
) -> float | None:
    """Return the scale of a DQ over that of its Q.

    None where they are equal, or where one is not a stored single number.
    """
    if q_format is None or q_format.scale == dq_format.scale:
        return None
    if not graph.has_stored(q_format.scale, dq_format.scale):
        return None
    q_scale = _read_single_scale(graph, q_format)
    dq_scale = _read_single_scale(graph, dq_format)
    if q_scale is None or dq_scale is None or not q_scale > 0.0:
        return None
    ratio = dq_scale / q_scale
    difference = abs(ratio - 1.0)
    is_same = difference < _SAME_SCALE
    is_finite = difference <= _LARGEST_FLOAT32
    return ratio if is_finite and not is_same else None


def _read_single_scale(graph: GraphWriter, integer_format: IntegerFormat) -> float | None:
    """Return the only scale of a stored format, None for several."""
    scales = graph.read_values(integer_format.scale)
    if scales.size != 1:
        return None
    return float(scales.flat[0])


def _with_onnx_domain(graph: GraphWriter, node: NodeProto) -> NodeProto:
    """Return a Q or DQ in ONNX's domain; the node itself where it has that domain."""
    if node.domain != MICROSOFT:
        return node
    plain = copy_node(node)
    plain.domain = ""
    graph.record(node, "is ONNX Runtime's operator; ONNX's takes its place")
    return plain


def read_integer_format(node: NodeProto) -> IntegerFormat:
    """Return the scale, zero point and axis of a Q or DQ."""
    axis = None
    for attribute in node.attribute:
        if attribute.name == "axis":
            axis = int(attribute.i)
    return IntegerFormat(node.input[1], input_name(node, 2), axis)


def _has_output_type(node: NodeProto) -> bool:
    """Whether an attribute of a Q specifies its integer type."""
    return any(a.name == "output_dtype" and a.i for a in node.attribute)
