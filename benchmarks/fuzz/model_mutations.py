"""Changes to the fields of an ONNX model: operators, wires, attributes, dims, types, names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fuzz.byte_mutations import mutate_bytes
from tests.support.mutations import graphs_of, mutated

ODD_INTEGERS = (0, 1, -1, 2, 3, 7, 16, 99, 127, 255, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 40)
ODD_FLOATS = (0.0, -1.0, 1e-42, 3e38, float("nan"), float("inf"), 0.5)
ODD_NAMES = (
    "", " ", "a\nb", "a\0b", "\x1b[31m", "é", "\u2028", "a/b", "#0", "x" * 3000, "x_scale", "*",
    "a: b", "|", "x_quantized", "\ud7ff", "`a`",
)  # fmt: skip
OPERATORS = (
    "Conv", "Gemm", "MatMul", "Add", "Sum", "Mul", "Relu", "Identity", "Cast", "Dropout", "Reshape",
    "Concat", "MaxPool", "Softmax", "LSTM", "If", "Loop", "Scan", "Constant", "ConstantOfShape",
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear",
    "MatMulInteger", "ConvInteger", "Einsum", "Split", "Transpose", "Resize", "Unknown", "",
    "Gather", "LayerNormalization", "TRT_FP8QuantizeLinear", "FusedMatMul", "SequenceAt",
    "Optional",
)  # fmt: skip


def mutate_model(content: bytes, rng: random.Random, count: int = 1) -> bytes:
    """Return a model with some fields or pairs changed."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(count):
        mutation = rng.choice((_mutate_pairs, _mutate_field, _mutate_field, *WIRE_MUTATIONS))
        model = mutation(model, rng) or model
    return model.SerializeToString()


def _mutate_pairs(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto | None:
    """Return a model with a changed pair; None where earlier changes left none to change."""
    try:
        return mutated(model, rng.randrange(1 << 30), 1)[0]
    except (IndexError, ValueError, TypeError, StopIteration):
        return None


# Any field, by its descriptor.


def _mutate_field(model: onnx.ModelProto, rng: random.Random) -> None:
    messages = list(_messages(model))
    message = rng.choice(messages)
    field = _choose_field(message, rng)
    if _is_repeated(field):
        _mutate_repeated(message, field, rng, messages)
    elif field.message_type is not None:
        _mutate_part(message, field, rng, messages)
    else:
        setattr(message, field.name, _odd_scalar(field, getattr(message, field.name), rng, model))


def _choose_field(message: Message, rng: random.Random) -> FieldDescriptor:
    """Return a field of a message, more often one that is set."""
    fields = list(message.DESCRIPTOR.fields)
    present = [field for field in fields if getattr(message, field.name)]
    return rng.choice(present if present and rng.random() < 0.75 else fields)


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if _is_repeated(field) else [value]:
            yield from _messages(part)


def _mutate_repeated(
    message: Message, field: FieldDescriptor, rng: random.Random, messages: list[Message]
) -> None:
    values = getattr(message, field.name)
    action = rng.choice(("lose", "repeat", "swap", "clear", "change", "change", "add"))
    if not values or action == "add":
        _append(values, field, rng, messages)
        return
    at = rng.randrange(len(values))
    if action == "lose":
        del values[at]
    elif action == "clear":
        del values[:]
    elif action == "repeat":
        values.extend([_copied(values[at])])
    elif action == "swap" or field.message_type is not None:
        _swap(values, at, rng.randrange(len(values)), is_message=field.message_type is not None)
    else:
        values[at] = _odd_scalar(field, values[at], rng, messages[0])


def _append(
    values: Any, field: FieldDescriptor, rng: random.Random, messages: list[Message]
) -> None:
    if field.message_type is None:
        values.append(_odd_scalar(field, None, rng, messages[0]))
        return
    same = [m for m in messages if m.DESCRIPTOR is field.message_type]
    if same:
        values.extend([_copied(rng.choice(same))])
    else:
        values.add()


def _copied(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    copy = type(value)()
    copy.CopyFrom(value)
    return copy


def _swap(values: Any, first: int, second: int, is_message: bool) -> None:
    left, right = _copied(values[first]), _copied(values[second])
    if is_message:
        values[first].CopyFrom(right)
        values[second].CopyFrom(left)
    else:
        values[first], values[second] = right, left


def _mutate_part(
    message: Message, field: FieldDescriptor, rng: random.Random, messages: list[Message]
) -> None:
    """Clear a message of another, or replace it by one of its type, such as a body by its graph."""
    same = [m for m in messages if m.DESCRIPTOR is field.message_type]
    if same and rng.random() < 0.7:
        getattr(message, field.name).CopyFrom(_copied(rng.choice(same)))
    else:
        message.ClearField(field.name)


def _odd_scalar(field: FieldDescriptor, value: Any, rng: random.Random, model: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _odd_text(field, value or "", rng, model)
    if field.type == FieldDescriptor.TYPE_BYTES:
        content = value or b""
        return mutate_bytes(content, rng) if content else rng.randbytes(rng.choice((0, 1, 4, 8)))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(ODD_FLOATS)
    chosen = rng.choice((*ODD_INTEGERS, (value or 0) + 1, (value or 0) - 1, -(value or 0)))
    return _fitted(field, chosen)


def _fitted(field: FieldDescriptor, number: int) -> int:
    """Return an integer that the field's type holds."""
    bits = 31 if field.type == FieldDescriptor.TYPE_INT32 else 63
    if field.type == FieldDescriptor.TYPE_UINT64:
        return abs(number)
    return max(-(1 << bits), min(number, (1 << bits) - 1))


def _odd_text(field: FieldDescriptor, value: str, rng: random.Random, model: Any) -> str:
    if field.name == "op_type":
        return rng.choice(OPERATORS)
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(ODD_NAMES)
    if kind == 1:
        return value[:-1] if rng.random() < 0.5 else value + rng.choice(ODD_NAMES[1:])
    return rng.choice(_tensor_names(model.graph) or [""])


def _tensor_names(graph: onnx.GraphProto) -> list[str]:
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    return names + [t.name for t in graph.initializer]


# Wires and operators.


def _rewire_input(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(graphs_of(model.graph)))
    nodes = [node for node in graph.node if node.input]
    if nodes:
        node = rng.choice(nodes)
        node.input[rng.randrange(len(node.input))] = rng.choice([*_tensor_names(model.graph), ""])


def _change_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(graphs_of(model.graph)))
    if graph.node:
        rng.choice(list(graph.node)).op_type = rng.choice(OPERATORS)


def _change_output(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(graphs_of(model.graph)))
    nodes = [node for node in graph.node if node.output]
    if nodes:
        node = rng.choice(nodes)
        node.output[rng.randrange(len(node.output))] = rng.choice(_tensor_names(model.graph))


def _rename_tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    """Give a tensor an odd name everywhere."""
    old, new = rng.choice(_tensor_names(model.graph) or [""]), rng.choice(ODD_NAMES)
    for graph in graphs_of(model.graph):
        for node in graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for item in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            item.name = new if item.name == old else item.name


def _nest_graph(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put the graph into an attribute of one of its nodes, some levels deep."""
    if not model.graph.node:
        return
    for _ in range(rng.choice((1, 2, 5))):
        body = _copied(model.graph)
        if body.ByteSize() > 100_000:
            return
        node = rng.choice(list(model.graph.node))
        node.op_type = rng.choice(("If", "Loop", "Scan", node.op_type))
        name = rng.choice(("then_branch", "else_branch", "body", "other"))
        attribute = node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(body)


def _change_opset(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.opset_import:
        opset = rng.choice(list(model.opset_import))
        opset.version = rng.choice((0, 1, 7, 9, 10, 11, 13, 18, 19, 21, 23, 99, -1, 1 << 40))


def _make_function(model: onnx.ModelProto, rng: random.Random) -> None:
    """Name a function after an operator in use; its body calls some operator, or itself."""
    if model.graph.node:
        called = rng.choice(list(model.graph.node))
        domain = rng.choice(("", "local", called.domain))
        called.domain = domain
        function = model.functions.add(name=called.op_type, domain=domain)
        function.input.extend([f"i{i}" for i in range(len(called.input))])
        function.output.extend([f"o{i}" for i in range(len(called.output))])
        inner = function.node.add(op_type=rng.choice((called.op_type, "Relu", "Unknown")))
        inner.domain = rng.choice((domain, ""))
        inner.input.extend(list(function.input)[:1])
        inner.output.extend(list(function.output)[:1])
        function.opset_import.add(domain="", version=17)


WIRE_MUTATIONS: tuple[Callable[[onnx.ModelProto, random.Random], Any], ...] = (
    _rewire_input,
    _rewire_input,
    _change_operator,
    _change_output,
    _rename_tensor,
    _nest_graph,
    _change_opset,
    _make_function,
)
