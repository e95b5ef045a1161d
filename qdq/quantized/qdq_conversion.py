"""The halves of pairs, written as plain ones: what their clipping or unequal scales compute besides becomes nodes of its own."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from qdq.graph.metadata import LEVELS_KEY
from qdq.graph.quantized_operators import MICROSOFT
from qdq.quantized.graph_writer import GraphWriter, IntegerFormat, copy_node, input_name

#: Scales of a Q and its DQ that differ by less are taken for the same, written with fewer digits.
_SAME_SCALE = 1e-3

#: A bound is a whole number where it is within so much of one, relatively: scales in FP32 are exact to 6e-8.
_WHOLE = 1e-6

#: What a Q without a zero point may mean.
_UINT8, _INT8 = (0, 255), (-128, 127)


def write_quantize(graph: GraphWriter, node: onnx.NodeProto) -> None:
    """Write a QuantizeLinear, and the activation that was folded into it."""
    plain, form = (
        _own_domain(graph, node),
        IntegerFormat(node.input[1], input_name(node, 2), read_axis_attribute(node)),
    )
    graph.quantized[node.output[0]] = form
    if not form.zero and node.input[0] not in graph.stored and not _output_type(node):
        graph.untold[node.output[0]] = _UINT8 if node.input[0] in graph.not_negative else _INT8
        graph.model.note(
            node,
            f"has no zero point; it is taken for {'UINT8, as ONNX' if node.input[0] in graph.not_negative else 'INT8, as TensorRT'} does",
        )
    if graph.begins_at_zero(form) and node.input[0] in graph.made - graph.not_negative:
        plain = copy_node(plain)
        plain.input[0] = _unfolded(graph, node, form)
    graph.append(plain)


def _unfolded(graph: GraphWriter, node: onnx.NodeProto, form: IntegerFormat) -> str:
    """Write out the activation that was folded into a Q whose range begins at zero, and return what it gives.

    ONNX Runtime's quantizer folds Relu, and Clip from 0 to 6 or 1 as in hard-swish; the range then ends at that whole number
    exactly, which the largest value that calibration sees of anything else hardly does.
    """
    tensor = node.input[0]
    bound = _whole_bound(graph, form)
    op = "Relu" if bound is None else f"Clip from 0 to {bound}"
    graph.model.note(
        node,
        f"clips {tensor!r} as a {op} that was folded into it did; the {op.partition(' ')[0]} is written out",
    )
    if bound is None:
        return graph.add("Relu", [tensor], f"{tensor}_relu")
    dtype = graph.values(form.scale).dtype
    bounds = [
        graph.store(np.array(value, dtype), f"{tensor}_{name}")
        for value, name in ((0, "least"), (bound, "largest"))
    ]
    return graph.add("Clip", [tensor, *bounds], f"{tensor}_clip")


def _whole_bound(graph: GraphWriter, form: IntegerFormat) -> int | None:
    """Return the whole number that a range from zero ends at, of all its levels or of 7 bits, which a reduced range uses; None for another number."""
    levels = graph.levels(form)
    if levels is None or form.scale not in graph.stored or graph.holds_several(form.scale):
        return None
    ends = [
        float(graph.values(form.scale).flat[0]) * steps
        for steps in (levels[1] - levels[0], (levels[1] - levels[0]) // 2)
    ]
    return next(
        (round(end) for end in ends if round(end) >= 1 and abs(end - round(end)) < _WHOLE * end),
        None,
    )


def write_dequantize(graph: GraphWriter, node: onnx.NodeProto) -> None:
    """Write a DequantizeLinear with the scale of its Q, and what it computes besides."""
    plain = _own_domain(graph, node)
    tensor, levels = graph.passed.get(node.input[0], (node.input[0], None))
    levels = levels or graph.untold.get(tensor)
    if levels is not None or tensor != node.input[0]:
        plain = copy_node(plain)
        plain.input[0] = tensor
    if levels is not None:
        plain.metadata_props.add(key=LEVELS_KEY, value=f"{levels[0]} {levels[1]}")
    form = graph.quantized.get(plain.input[0])
    if graph.begins_at_zero(form or IntegerFormat(node.input[1], input_name(node, 2))):
        graph.not_negative.add(node.output[0])
    ratio = _ratio(graph, form.scale, node.input[1]) if form else None
    if form is None or ratio is None:
        graph.append(plain)
        return
    plain = copy_node(plain)
    plain.input[1], plain.output[0] = form.scale, graph.model.fresh(f"{node.output[0]}_unscaled")
    graph.append(plain)
    factor = graph.store(np.array(ratio, np.float32), f"{node.output[0]}_ratio")
    graph.append(
        helper.make_node(
            "Mul",
            [plain.output[0], factor],
            [node.output[0]],
            name=graph.model.fresh(f"{node.name}_Mul"),
        )
    )
    graph.model.note(
        node,
        f"has {ratio:.6g} times the scale of its QuantizeLinear; the factor is written out as a Mul",
    )


def _ratio(graph: GraphWriter, quantizing: str, dequantizing: str) -> float | None:
    """Return the scale of a DQ over that of its Q, None where they are the same, or not both stored single numbers."""
    if quantizing == dequantizing or not {quantizing, dequantizing} <= graph.stored.keys():
        return None
    ours, theirs = (
        graph.values(name).astype(np.float64).reshape(-1) for name in (quantizing, dequantizing)
    )
    if ours.size != 1 or theirs.size != 1 or not ours[0] > 0.0:
        return None
    ratio = float(theirs[0] / ours[0])
    return ratio if _SAME_SCALE <= abs(ratio - 1.0) <= float(np.finfo(np.float32).max) else None


def _own_domain(graph: GraphWriter, node: onnx.NodeProto) -> onnx.NodeProto:
    if node.domain != MICROSOFT:
        return node
    plain = copy_node(node)
    plain.domain = ""
    graph.model.note(node, "is ONNX Runtime's own operator; it becomes ONNX's")
    return plain


def _output_type(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "output_dtype"), 0)


def read_axis_attribute(node: onnx.NodeProto) -> int | None:
    """Return the axis attribute of a Q or DQ, None where it is absent."""
    return next((a.i for a in node.attribute if a.name == "axis"), None)
