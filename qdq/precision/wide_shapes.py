"""Shapes that are narrowed to int32, cut, and cast again: they stay int64.

Only a dimension of 2**31 or more would differ, which int32 does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from onnx import GraphProto, NodeProto, TensorProto

from qdq.graph.bodies import list_names, names_captured_by
from qdq.graph.operators import MOVES_VALUES

#: Operators that move or pick the values of their first input, whose type does not matter.
_CUTS = (*MOVES_VALUES, "Gather", "Slice")

_Readers = Mapping[str, list[tuple[NodeProto, int]]]


def widen_shapes(graph: GraphProto, types: dict[str, int]) -> dict[str, str]:
    """Let shapes stay int64 whose Casts to int32 only enter other Casts, cut or not.

    `types` are the integer types of tensors, and are updated. Returns the results of the first
    Casts, with the shapes that are read in their place.
    """
    readers: dict[str, list[tuple[NodeProto, int]]] = {}
    shapes: set[str] = set()
    fixed = set(list_names(graph.output))
    for node in graph.node:
        for slot, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, slot))
        fixed |= names_captured_by(node)
        if node.op_type == "Shape":
            shapes.add(node.output[0])
    replaced: dict[str, str] = {}
    for node in graph.node:
        is_narrowed = node.op_type == "Cast" and read_target(node) == TensorProto.INT32
        if not is_narrowed or node.input[0] not in shapes:
            continue
        narrow = _list_until_casts(node.output[0], readers, fixed)
        if narrow:
            types.update(dict.fromkeys(narrow, TensorProto.INT64))
            replaced[node.output[0]] = node.input[0]
            _set_target(node, TensorProto.INT64)
            _declare_wide(graph, narrow)
    return replaced


def read_target(node: NodeProto) -> int:
    """Return the element type that a Cast makes."""
    return next((int(item.i) for item in node.attribute if item.name == "to"), 0)


def _set_target(node: NodeProto, elem_type: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "to":
            attribute.i = elem_type


def _list_until_casts(tensor: str, readers: _Readers, fixed: Set[str]) -> list[str]:
    """Return a tensor and what is cut from it, up to Casts; none where others read it."""
    passed = [tensor]
    for name in passed:
        if name in fixed:
            return []
        for reader, slot in readers.get(name, ()):
            if reader.op_type == "Cast":
                continue
            if slot or reader.op_type not in _CUTS:
                return []
            passed.extend(set(reader.output) - set(passed))
    return passed


def _declare_wide(graph: GraphProto, tensors: list[str]) -> None:
    for value in graph.value_info:
        if value.name in tensors:
            value.type.tensor_type.elem_type = TensorProto.INT64
