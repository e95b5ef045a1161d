"""The float types that the inputs and outputs of operators may have (ONNX operator schemas)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from qdq.graph.float_types import FloatType
from qdq.graph.plugins import DEFAULT_DOMAINS, find_schema

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto

#: Inputs that an operator reads in any type with the same result, by operator.
_ANY_TYPE_SLOTS = {
    "Cast": (0,),
    "EyeLike": (0,),
    "OneHot": (0, 1),
    "RandomNormalLike": (0,),
    "RandomUniformLike": (0,),
    "Shape": (0,),
    "Size": (0,),
}

#: Attributes that state the element type of an output; their default is that of the input, or
#: float32.
TYPE_ATTRIBUTES = {
    "Bernoulli": "dtype",
    "BlackmanWindow": "output_datatype",
    "Cast": "to",
    "EyeLike": "dtype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
}


class NodeTypes(msgspec.Struct, frozen=True):
    """Which inputs and outputs of a node may have a short float type."""

    #: One entry per input slot, and per output.
    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]
    #: The inputs whose float type does not matter.
    any_type: tuple[int, ...] = ()


def find_node_types(node: NodeProto, opset: int, float_type: FloatType) -> NodeTypes | None:
    """Return which inputs and outputs of a node may be of a type; None for unknown operators."""
    if node.domain not in DEFAULT_DOMAINS:
        return None
    schema = find_schema(node.op_type, opset)
    if schema is None:
        return None
    inputs = _expand(schema.inputs, len(node.input))
    outputs = _expand(schema.outputs, len(node.output))
    allowed = _allowed_types(node.op_type, opset, float_type)
    return NodeTypes(
        tuple(name in allowed for name in inputs),
        tuple(name in allowed for name in outputs),
        _ANY_TYPE_SLOTS.get(node.op_type, ()),
    )


def _expand(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """Return the type variable of each actual parameter; the last formal one may be variadic."""
    names = [parameter.type_str for parameter in parameters]
    if not names:
        return [""] * count
    return [names[min(position, len(names) - 1)] for position in range(count)]


@cache
def _allowed_types(operator: str, opset: int, float_type: FloatType) -> frozenset[str]:
    """Return the type variables of an operator that a float type may take."""
    schema = find_schema(operator, opset)
    name = f"tensor({float_type.onnx_name})"
    if schema is None or _holds_sequences(schema):
        return frozenset()
    allowed = [
        constraint.type_param_str
        for constraint in schema.type_constraints
        if name in constraint.allowed_type_strs
    ]
    return frozenset((*allowed, name))


def _holds_sequences(schema: onnx.defs.OpSchema) -> bool:
    """Whether an operator makes or reads sequences or optional values, whose types must stay."""
    if schema.name.startswith("Optional"):
        return True
    for parameter in (*schema.inputs, *schema.outputs):
        if not any(name.startswith("tensor(") for name in parameter.types):
            return True
    return False
