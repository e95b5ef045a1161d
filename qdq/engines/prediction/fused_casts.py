"""Casts between float types that TensorRT fuses with the Q after them or the DQ before them."""

from __future__ import annotations

from collections.abc import Iterator

from qdq.graph.aliases import cast_type, is_alias_or_float_cast
from qdq.graph.index import GraphIndex, Node
from qdq.graph.patterns import carries_pairs
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE


def walk_back(index: GraphIndex, tensor: str) -> Iterator[Node]:
    """Yield the node that writes a tensor, the node that writes its first input, and so on."""
    node = index.producers.get(tensor)
    while node is not None and node.inputs:
        yield node
        node = index.producers.get(node.inputs[0])


def list_cast_types(index: GraphIndex, tensor: str) -> tuple[int, ...]:
    """Return the types of the DQ upstream of a tensor and of the Casts after it, in their order."""
    types: list[int] = []
    for node in walk_back(index, tensor):
        if node.op == DEQUANTIZE:
            types.append(index.elem_type(node.outputs[0]))
            break
        if cast_type(index, node):
            types.append(cast_type(index, node))
    return tuple(reversed(types))


def find_last_cast(index: GraphIndex, cast: Node) -> str:
    """Return the result of the last of the Casts that follow each other from a Cast on."""
    tensor: str = cast.outputs[0]
    reader: Node | None = cast
    while reader is not None and carries_pairs(index, reader):
        if cast_type(index, reader):
            tensor = reader.outputs[0]
        reader = index.sole_consumer(reader.outputs[0])
    return tensor


def feeds_only_quantize(index: GraphIndex, tensor: str) -> bool:
    """Whether only Qs read a tensor, as it is or after further aliases and Casts."""
    readers = index.consumers.get(tensor, ())
    if not readers or tensor in index.outputs:
        return False
    for reader, slot in readers:
        if slot != 0:
            return False
        is_passed = is_alias_or_float_cast(index, reader)
        if is_passed and feeds_only_quantize(index, reader.outputs[0]):
            continue
        if reader.op != QUANTIZE:
            return False
    return True
