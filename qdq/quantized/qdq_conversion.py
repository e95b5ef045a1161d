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
    FoldedTensor,
    GraphWriter,
    IntegerFormat,
    Levels,
    copy_node,
    input_name,
)

#: Scales of a Q and its DQ that differ by less count as equal, written with fewer digits.
_SAME_SCALE = 1e-3

#: The largest relative distance of a bound from a whole number: FP32 scales are exact to 6e-8.
_WHOLE = 1e-6

#: The two meanings of a Q without a zero point.
_UINT8, _INT8 = (0, 255), (-128, 127)


def append_quantize(graph: GraphWriter, tensor: str, parameters: list[str], result: str) -> None:
    """Append a QuantizeLinear with the given scale and zero point."""
    name = graph.model.unique_name(f"{tensor}_{QUANTIZE}")
    inputs = [tensor, *parameters]
    write_quantize(graph, helper.make_node(QUANTIZE, inputs, [result], name=name))


def write_quantize(graph: GraphWriter, node: NodeProto) -> None:
    """Write a QuantizeLinear and the activation that was folded into it."""
    plain = _with_onnx_domain(graph, node)
    tensor = node.input[0]
    integer_format = IntegerFormat(node.input[1], input_name(node, 2), read_axis_attribute(node))
    graph.quantized[node.output[0]] = integer_format
    if not integer_format.zero_point and tensor not in graph.stored and not _output_type(node):
        _assume_levels(graph, node)
    can_be_negative = tensor in graph.produced and tensor not in graph.nonnegative
    if graph.has_range_from_zero(integer_format) and can_be_negative:
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
    graph.model.record(node, f"has no zero point; its type is taken to be {convention}")


def _write_activation(graph: GraphWriter, node: NodeProto, integer_format: IntegerFormat) -> str:
    """Write the activation that was folded into a Q whose range begins at zero.

    Returns the name of its result. ONNX Runtime's quantizer folds Relu, and Clip from 0 to 6 or 1
    as in hard-swish. The range of a folded Clip ends exactly at that whole number, which a
    calibrated maximum of other values hardly does.
    """
    tensor = node.input[0]
    bound = _find_whole_bound(graph, integer_format)
    op = "Relu" if bound is None else "Clip"
    activation = op if bound is None else f"Clip from 0 to {bound}"
    conversion = (
        f"clips {tensor!r} as the {activation} that was folded into it; the {op} is restored"
    )
    graph.model.record(node, conversion)
    if bound is None:
        return graph.add("Relu", [tensor], f"{tensor}_relu")
    dtype = graph.read_values(integer_format.scale).dtype
    least = graph.store(np.array(0, dtype), f"{tensor}_least")
    largest = graph.store(np.array(bound, dtype), f"{tensor}_largest")
    return graph.add("Clip", [tensor, least, largest], f"{tensor}_clip")


def _find_whole_bound(graph: GraphWriter, integer_format: IntegerFormat) -> int | None:
    """Return the whole number that a range from zero ends at, None for any other end.

    The range has all levels of the type, or 7 bits of them in a reduced range.
    """
    levels = graph.levels(integer_format)
    scale = integer_format.scale
    if levels is None or scale not in graph.stored or graph.has_several_values(scale):
        return None
    step = float(graph.read_values(scale).flat[0])
    all_steps = levels[1] - levels[0]
    for steps in (all_steps, all_steps // 2):
        end = step * steps
        whole = round(end)
        if whole >= 1 and abs(end - whole) < _WHOLE * end:
            return whole
    return None


def write_dequantize(graph: GraphWriter, node: NodeProto) -> None:
    """Write a DequantizeLinear with the scale of its Q.

    A Mul restores a scale that differs from the Q's.
    """
    plain = _read_origin(graph, node)
    q_format = graph.quantized.get(plain.input[0])
    dq_format = IntegerFormat(node.input[1], input_name(node, 2))
    if graph.has_range_from_zero(q_format or dq_format):
        graph.nonnegative.add(node.output[0])
    ratio = None if q_format is None else _find_ratio(graph, q_format.scale, dq_format.scale)
    if q_format is None or ratio is None:
        graph.append(plain)
        return
    _write_rescaled(graph, node, plain, q_format.scale, ratio)


def _read_origin(graph: GraphWriter, node: NodeProto) -> NodeProto:
    """Return a DQ that reads the tensor before a folded Clip or Cast, with the levels it holds."""
    plain = _with_onnx_domain(graph, node)
    quantized = node.input[0]
    folded = graph.folded_tensors.get(quantized, FoldedTensor(quantized, None))
    levels = folded.levels or graph.assumed_levels.get(folded.origin)
    if levels is None and folded.origin == quantized:
        return plain
    copy = copy_node(plain)
    copy.input[0] = folded.origin
    if levels is not None:
        copy.metadata_props.add(key=LEVELS_KEY, value=_format_levels(levels))
    return copy


def _format_levels(levels: Levels) -> str:
    least, largest = levels
    return f"{least} {largest}"


def _write_rescaled(
    graph: GraphWriter, node: NodeProto, plain: NodeProto, q_scale: str, ratio: float
) -> None:
    """Write a DQ with the scale of its Q, and a Mul by the ratio of both scales."""
    result = node.output[0]
    rescaled = copy_node(plain)
    rescaled.input[1] = q_scale
    rescaled.output[0] = graph.model.unique_name(f"{result}_unscaled")
    graph.append(rescaled)
    factor = graph.store(np.array(ratio, np.float32), f"{result}_ratio")
    inputs = [rescaled.output[0], factor]
    name = graph.model.unique_name(f"{node.name}_Mul")
    graph.append(helper.make_node("Mul", inputs, [result], name=name))
    graph.model.record(
        node, f"has {ratio:.6g} times the scale of its QuantizeLinear; a Mul applies that factor"
    )


def _find_ratio(graph: GraphWriter, q_scale: str, dq_scale: str) -> float | None:
    """Return the scale of a DQ over that of its Q.

    None where they are equal, or where one is not a stored single number.
    """
    if q_scale == dq_scale or q_scale not in graph.stored or dq_scale not in graph.stored:
        return None
    q_values = graph.read_values(q_scale).astype(np.float64).reshape(-1)
    dq_values = graph.read_values(dq_scale).astype(np.float64).reshape(-1)
    if q_values.size != 1 or dq_values.size != 1 or not q_values[0] > 0.0:
        return None
    ratio = float(dq_values[0] / q_values[0])
    largest = float(np.finfo(np.float32).max)
    return ratio if _SAME_SCALE <= abs(ratio - 1.0) <= largest else None


def _with_onnx_domain(graph: GraphWriter, node: NodeProto) -> NodeProto:
    """Return a Q or DQ in ONNX's domain; the node itself where it has that domain."""
    if node.domain != MICROSOFT:
        return node
    plain = copy_node(node)
    plain.domain = ""
    graph.model.record(node, "is ONNX Runtime's operator; ONNX's takes its place")
    return plain


def _output_type(node: NodeProto) -> int:
    for attribute in node.attribute:
        if attribute.name == "output_dtype":
            return int(attribute.i)
    return 0


def read_axis_attribute(node: NodeProto) -> int | None:
    """Return the axis attribute of a Q or DQ, None where it is absent."""
    for attribute in node.attribute:
        if attribute.name == "axis":
            return int(attribute.i)
    return None
