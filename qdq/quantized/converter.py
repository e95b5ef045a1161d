"""A quantized model in any spelling -> the same in plain Q/DQ pairs, which the stages behind read.

Quantized operators become float ones between DequantizeLinear and QuantizeLinear, integer operators between
a Q and its DQ move behind the DQ, and what a pair's clipping or unequal halves compute besides is written
out. ONNX's meaning stays: both models give the same, up to the rounding of integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from qdq.errors import ModelError
from qdq.graph.bodies import all_nodes, node_bodies
from qdq.graph.index import GraphIndex
from qdq.graph.loader import raise_source_opset
from qdq.graph.opset import default_opset
from qdq.graph.pairs import PAIR_OPERATORS, count_readers
from qdq.graph.quantized_operators import (
    DEQUANTIZE,
    INTEGER_PRODUCTS,
    MICROSOFT,
    QUANTIZE,
    FloatForm,
    Operand,
    find_float_form,
    flattened_axis,
    float_attributes,
    is_quantized_operator,
)
from qdq.graph.source import Source
from qdq.quantized.graph_writer import (
    ConvertedNode,
    GraphWriter,
    ModelWriter,
    copy_node,
    input_name,
    remove_suffix,
)
from qdq.quantized.graph_writer import IntegerFormat as Quantized
from qdq.quantized.integer_conversion import convert_dynamic_product, convert_integer_product
from qdq.quantized.qdq_conversion import read_axis_attribute, write_dequantize, write_quantize
from qdq.quantizer import required_opset

#: Operators that a model may run on the integers between a Q and its DQ, with the input slots that hold quantized values: they move, pick
#: or interpolate values, and their result has the scale of what they read.
_BETWEEN: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherElements", "GatherND", "Split", "Resize",
            "Identity", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Dropout",
        ),
        (0,),
    ),
    "Pad": (0, 2),
    "Concat": (),
}  # fmt: skip

#: Operators whose result follows from the order of integers alone, and is not quantized itself.
_ENDS = ("ArgMax", "ArgMin")

#: What ONNX Runtime's quantizer appends to the name of a node.
_NODE_SUFFIX = "_quant"

#: The opset from which on the axes of ReduceMean are an input (ONNX operator changelog).
_REDUCE_AXES_OPSET = 18


def convert_to_qdq(source: Source) -> tuple[Source, tuple[ConvertedNode, ...]]:
    """Return a model whose quantization is all in plain pairs, and what was converted; the model itself where it was so.

    A quantized operator that no pairs can stand for stays as it is; `find_unconverted` names those.
    Raises ModelError for an operator whose attributes, scales or bias no float operator can follow.
    """
    respelling = ModelWriter(source)
    try:
        graph = GraphWriter(respelling, source.model.graph)
        _store_constants(graph)
        nodes = _converted(graph)
    except ModelError as error:
        if str(error).startswith(f"{source.name}: "):  # of a constant that cannot be read
            raise
        raise ModelError(f"{source.path or source.name}: {error}") from error
    if not respelling.converted:
        return source, ()
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    _replace(model.graph, nodes)
    model.graph.initializer.extend(respelling.initializers)
    _tidy(model, set(count_readers(source.model.graph)))
    types = {
        tensor.data_type
        for name, tensor in graph.stored.items()
        if name in {form.zero for form in graph.quantized.values()}
    }
    plain = msgspec.structs.replace(source, model=model, stamp=None)
    return raise_source_opset(
        plain, max((required_opset(code) for code in types), default=0)
    ), tuple(respelling.converted)


def find_unconverted(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the quantized nodes of a model that are no plain pairs, each with its operator, those in bodies too."""
    return tuple(
        f"{label} ({node.op_type})"
        for label, node in all_nodes(model.graph)
        if is_quantized_operator(node)
    )


def _converted(graph: GraphWriter) -> list[onnx.NodeProto]:
    """Return the nodes of a graph, converted; those that need not be are the graph's own."""
    graph.quantized |= _told(graph)
    for node in graph.graph.node:
        if not graph.folded.intersection(node.output):
            _write(graph, _with_bodies(graph, node))
    return graph.nodes


def _store_constants(graph: GraphWriter) -> None:
    """Store the scales, zero points and integers of pairs that follow from constants, in the place of the nodes that compute them."""
    named = {
        name
        for node in graph.graph.node
        if node.op_type in PAIR_OPERATORS
        for name in node.input[1:3]
    }
    named |= {node.input[0] for node in graph.graph.node if node.op_type == DEQUANTIZE}
    computed = {name: graph.producers[name] for name in named if name in graph.producers}
    computed = {
        name: node
        for name, node in computed.items()
        if node.op_type not in (*PAIR_OPERATORS, "Constant", "DynamicQuantizeLinear")
    }
    outputs = {o.name for o in graph.graph.output}
    index = GraphIndex(graph.model.source) if computed else None
    for name, node in computed.items():
        if (
            index is not None
            and name in index.constants
            and name not in outputs
            and len(node.output) == 1
        ):
            graph.stored[name] = numpy_helper.from_array(index.constant(name), name)
            graph.model.initializers.append(graph.stored[name])
            graph.folded.add(name)
            graph.model.note(node, "makes a constant of a pair; its value is stored")


def _told(graph: GraphWriter) -> dict[str, Quantized]:
    """Return how stored integers are quantized that operators move before a DQ, or a quantized operator, says it."""
    told: dict[str, Quantized] = {}
    for node in reversed(graph.graph.node):
        form = find_float_form(node)
        if node.op_type in PAIR_OPERATORS and len(node.input) < 2:  # noqa: PLR2004 data and scale
            raise ModelError(
                f"is damaged: node {node.name!r} ({node.op_type}) has no scale; export or download it again"
            )
        if node.op_type == DEQUANTIZE:
            told[node.input[0]] = Quantized(
                node.input[1], input_name(node, 2), read_axis_attribute(node)
            )
        elif form is not None:
            _require_operands(node, form)
            told |= {
                node.input[o.tensor]: Quantized(
                    input_name(node, o.scale), input_name(node, o.zero_point)
                )
                for o in form.operands
            }
        elif node.op_type in _BETWEEN and node.output[0] in told:
            told[node.input[0]] = told[node.output[0]]
    return {
        name: form
        for name, form in told.items()
        if name in graph.stored and graph.levels(form) is not None
    }


def _require_operands(node: onnx.NodeProto, form: FloatForm) -> None:
    """Raise ModelError for a quantized operator without its operands or its result; of those in other domains ONNX has no definition."""
    needed = 1 + max(max(operand.tensor, operand.scale) for operand in form.operands)
    if len(node.input) < needed:
        raise ModelError(
            f"is damaged: node {node.name!r} ({node.op_type}) has {len(node.input)} inputs, its operands are {needed}; export or download it again"
        )
    if not node.output or not node.output[0]:
        raise ModelError(
            f"is damaged: node {node.name!r} ({node.op_type}) has no output; export or download it again"
        )


def _with_bodies(graph: GraphWriter, node: onnx.NodeProto) -> onnx.NodeProto:
    before = len(graph.model.converted)
    bodies = [_converted(GraphWriter(graph.model, body, graph)) for _, body in node_bodies(node)]
    if len(graph.model.converted) == before:
        return node
    copy = copy_node(node)
    for (_, body), nodes in zip(node_bodies(copy), bodies, strict=True):
        _replace(body, nodes)
    return copy


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    kept = onnx.GraphProto()
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def _write(graph: GraphWriter, node: onnx.NodeProto) -> None:
    writers: dict[str, Callable[[GraphWriter, onnx.NodeProto], None]] = {
        QUANTIZE: write_quantize,
        DEQUANTIZE: write_dequantize,
        "DynamicQuantizeLinear": _dynamic,
        "DynamicQuantizeMatMul": convert_dynamic_product,
        **dict.fromkeys(INTEGER_PRODUCTS, convert_integer_product),
    }
    form = find_float_form(node)
    if node.op_type in writers:
        writers[node.op_type](graph, node)
    elif form is not None:
        _operator(graph, node, form)
    elif any(name in graph.quantized for name in node.input):
        _between(graph, node)
    else:
        graph.append(node)


def _dynamic(graph: GraphWriter, node: onnx.NodeProto) -> None:
    graph.dynamic[node.output[0]] = node.input[0]
    graph.dynamic_scales[node.output[1]] = node.output[0]
    graph.append(node)


def _operator(graph: GraphWriter, node: onnx.NodeProto, form: FloatForm) -> None:
    """Write a quantized operator as DequantizeLinear, a float operator and QuantizeLinear."""
    inputs = [input_name(node, form.first)] if form.first is not None else []
    inputs += [
        _float_operand(graph, node, operand, form.axis if i else None)
        for i, operand in enumerate(form.operands)
    ]
    if input_name(node, form.bias):
        inputs.append(_float_bias(graph, node, form))
    graph.model.note(
        node,
        f"becomes {form.op}{' between DequantizeLinear and QuantizeLinear' if form.result else ''}",
    )
    result = node.output[0]
    given = graph.model.fresh(remove_suffix(result)) if form.result else result
    added = input_name(node, form.added)
    product = graph.model.fresh(f"{given}_product") if added else given
    _float_operator(graph, node, form, inputs, product)
    if added:
        graph.append(
            helper.make_node(
                "Add", [product, added], [given], name=graph.model.fresh(f"{given}_Add")
            )
        )
    if form.result:
        scale, zero = (graph.scalar(input_name(node, slot)) for slot in form.result)
        write_quantize(
            graph,
            helper.make_node(
                QUANTIZE,
                [given, scale, *filter(None, [zero])],
                [result],
                name=graph.model.fresh(f"{given}_QuantizeLinear"),
            ),
        )


def _float_operator(
    graph: GraphWriter, node: onnx.NodeProto, form: FloatForm, inputs: list[str], result: str
) -> None:
    name = remove_suffix(node.name, _NODE_SUFFIX)
    axis = flattened_axis(node)
    if axis is not None:
        flat = graph.add("Flatten", inputs, f"{result}_flat", axis=axis)
        softmax = graph.model.fresh(f"{result}_softmax")
        graph.append(helper.make_node(form.op, [flat], [softmax], name=name))
        shape = graph.add("Shape", inputs, f"{result}_shape")
        graph.append(
            helper.make_node(
                "Reshape", [softmax, shape], [result], name=graph.model.fresh(f"{result}_Reshape")
            )
        )
        return
    plain = helper.make_node(form.op, inputs, [result], name=name)
    plain.attribute.extend(float_attributes(node))
    axes = next((a for a in plain.attribute if a.name == "axes"), None)
    if axes is not None and default_opset(graph.model.source.model) >= _REDUCE_AXES_OPSET:
        plain.input.append(graph.store(np.array(axes.ints, np.int64), f"{result}_axes"))
        plain.attribute.remove(axes)
    graph.append(plain)


def _float_operand(
    graph: GraphWriter, node: onnx.NodeProto, operand: Operand, axis: int | None
) -> str:
    """Return an operand of a quantized operator in floats; `axis` is that of several scales."""
    tensor = node.input[operand.tensor]
    if tensor in graph.dynamic:
        return graph.dynamic[tensor]
    scale, zero = input_name(node, operand.scale), input_name(node, operand.zero_point)
    if not graph.holds_several(scale):
        return graph.to_float(tensor, Quantized(graph.scalar(scale), graph.scalar(zero)))
    last = len(graph.stored[tensor].dims) - 1 if tensor in graph.stored else None
    return graph.to_float(tensor, Quantized(scale, zero, last if axis == -1 else axis))


def _float_bias(graph: GraphWriter, node: onnx.NodeProto, form: FloatForm) -> str:
    """Return an INT32 bias in floats: its scale is that of the data times that of the weight (ONNX operator QLinearConv)."""
    bias, scales = (
        input_name(node, form.bias),
        [input_name(node, operand.scale) for operand in form.operands],
    )
    if not {bias, *scales} <= graph.stored.keys():
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) computes its bias or a scale, which no pair can; quantize the float model it was made from"
        )
    data, weight = (graph.values(name).reshape(-1) for name in scales)
    integers = graph.values(bias)
    if not {data.size, weight.size} <= {1, integers.size}:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) has {data.size} and {weight.size} scales for a bias of {integers.size} values; export it again"
        )
    exact = integers * (data.astype(np.float64) * weight.astype(np.float64))
    if not (np.abs(exact) <= np.finfo(data.dtype).max).all():
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) has a bias that its scales make infinite, or no number; export it again"
        )
    return graph.store(exact.astype(data.dtype), remove_suffix(bias))


def _between(graph: GraphWriter, node: onnx.NodeProto) -> None:
    """Write an operator that reads integers: between DequantizeLinear and QuantizeLinear where it keeps their scale, else as it is."""
    slots = _BETWEEN.get(node.op_type)
    form = graph.quantized.get(node.input[0])
    ends = graph.only_dequantized(node.output[0])
    if (
        ends
        and node.op_type == "Clip"
        and form is not None
        and (bounds := _bounds(graph, node)) is not None
    ):
        graph.passed[node.output[0]] = (node.input[0], bounds)
        graph.model.note(
            node,
            f"leaves {bounds[0]} to {bounds[1]} of the integers; the pair around it is read so",
        )
    elif (
        ends
        and node.op_type == "Cast"
        and form is not None
        and form.zero in graph.stored
        and node.attribute[0].i == graph.stored[form.zero].data_type
    ):
        graph.passed[node.output[0]] = graph.passed.get(node.input[0], (node.input[0], None))
        graph.quantized[node.output[0]] = form
        graph.model.note(node, "changes nothing; it is left out")
    elif (
        form is not None
        and form.axis is None
        and not graph.holds_several(form.scale)
        and (slots is not None or node.op_type in _ENDS)
    ):
        _float_between(graph, node, form, slots if slots is not None else (0,))
    else:
        graph.append(node)


def _float_between(
    graph: GraphWriter, node: onnx.NodeProto, form: Quantized, slots: tuple[int, ...]
) -> None:
    plain = copy_node(node)
    for slot, name in enumerate(node.input):
        if name and (not slots or slot in slots):
            plain.input[slot] = graph.to_float(name, graph.quantized.get(name, form))
    if node.op_type == "Pad" and not input_name(node, 2) and not _is_zero(graph, form):
        _pad_with_integer_zero(graph, plain, form)
    graph.model.note(node, "reads integers; it is moved behind the DequantizeLinear")
    if node.op_type in _ENDS:
        graph.append(plain)
        return
    quantized = [name for name in node.output if name][: None if node.op_type == "Split" else 1]
    floats = {name: graph.model.fresh(remove_suffix(name)) for name in quantized}
    for slot, name in enumerate(node.output):
        plain.output[slot] = floats.get(name, name)
    graph.append(plain)
    for name, given in floats.items():
        write_quantize(
            graph,
            helper.make_node(
                QUANTIZE,
                [given, *filter(None, form[:2])],
                [name],
                name=graph.model.fresh(f"{given}_QuantizeLinear"),
            ),
        )


def _pad_with_integer_zero(graph: GraphWriter, pad: onnx.NodeProto, form: Quantized) -> None:
    """Make a Pad add what the integer 0 stands for, which is what it adds where it is not told (ONNX operator Pad)."""
    zero = graph.store(np.zeros((), graph.values(form.zero).dtype), f"{pad.output[0]}_value")
    pad.input.extend([""] * (2 - len(pad.input)))
    del pad.input[3:]
    value = graph.to_float(zero, form)
    if len(pad.input) > 2:  # noqa: PLR2004 the slot of the constant
        pad.input[2] = value
    else:
        pad.input.append(value)


def _is_zero(graph: GraphWriter, form: Quantized) -> bool:
    return form.zero not in graph.stored or not graph.values(form.zero).any()


def _bounds(graph: GraphWriter, node: onnx.NodeProto) -> tuple[int, int] | None:
    """Return the least and largest integer that a Clip of integers lets through, None where they are computed."""
    levels = graph.levels(graph.quantized[node.input[0]])
    given = [input_name(node, 1), input_name(node, 2)]
    if levels is None or any(name and name not in graph.stored for name in given):
        return None
    low, high = (
        int(graph.values(name).reshape(-1)[0]) if name else level
        for name, level in zip(given, levels, strict=True)
    )
    return max(low, levels[0]), min(high, levels[1])


def _tidy(model: onnx.ModelProto, read_before: set[str]) -> None:
    """Remove what only the converted nodes used: nodes that nothing reads any more, initializers, and an unused operator domain."""
    graph = model.graph
    while True:
        read = count_readers(graph)
        dead = [
            i
            for i, node in enumerate(graph.node)
            if any(name in read_before for name in node.output)
            and not any(read[name] for name in node.output)
        ]
        if not dead:
            break
        for i in reversed(dead):
            del graph.node[i]
    stored = {t.name for t in graph.initializer}
    unread = {name for name in stored if name in read_before and not read[name]}
    for field in (graph.initializer, graph.input):
        for i in range(len(field) - 1, -1, -1):
            if field[i].name in unread:
                del field[i]
    used = {node.domain for _, node in all_nodes(graph)} | {""}
    for i in range(len(model.opset_import) - 1, -1, -1):
        if model.opset_import[i].domain == MICROSOFT and MICROSOFT not in used:
            del model.opset_import[i]
