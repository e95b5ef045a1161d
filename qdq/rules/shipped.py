"""The rule sets and kernel tables that are shipped with qdq."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import GraphProto, TensorProto

from qdq.graph.pairs import stored_tensors
from qdq.graph.source import Source
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT4

_PACKAGE = Path(__file__).parent.parent
DEFAULT_SET = "tensorrt"
KERNELS_FOLDER = "kernels"

#: The shipped rule set of FP8.
FP8_SET = "tensorrt-fp8"

#: The shipped rule sets of INT4 weights, and the size of blocks of the second.
INT4_SET = "tensorrt-int4"
INT4_SMALL_SET = "tensorrt-int4-block-64"
_SMALL_BLOCK = 64

#: The types of quantized values in 8 bits.
_EIGHT_BIT_TYPES = (TensorProto.INT8, TensorProto.UINT8)

#: The shipped rules about what stays in FP32 where the rest of a model is cast.
FLOAT_SET = "float"


def shipped_rules_folder() -> Path:
    """Return the folder of shipped rule sets and kernel tables.

    It is inside the wheel, or next to the package in a checkout.
    """
    in_wheel = _PACKAGE / "shipped_rules"
    if in_wheel.is_dir():
        return in_wheel
    return _PACKAGE.parent / "rules"


def shipped_sets() -> list[str]:
    """Return the names of the shipped rule sets, sorted."""
    names: list[str] = []
    for path in shipped_rules_folder().iterdir():
        if path.is_dir() and path.name != KERNELS_FOLDER:
            names.append(path.name)
    return sorted(names)


def default_rule_sets(source: Source) -> tuple[str, ...]:
    """Return the default rule sets for a model: those of the types that it has pairs in.

    INT4 beside INT8 is not one of the sets, so those of INT8 are.
    """
    tensors = stored_tensors(source.model.graph).values()
    stored_types = {tensor.data_type for tensor in tensors}
    if ELEMENT_TYPES[E4M3].code in stored_types:
        return (FP8_SET,)
    if ELEMENT_TYPES[INT4].code in stored_types and stored_types.isdisjoint(_EIGHT_BIT_TYPES):
        smallest = min(_list_block_sizes(source.model.graph), default=_SMALL_BLOCK)
        return (INT4_SMALL_SET if smallest <= _SMALL_BLOCK else INT4_SET,)
    return (DEFAULT_SET,)


def _list_block_sizes(graph: GraphProto) -> Iterator[int]:
    """Yield the sizes of the blocks that scales are for."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "block_size" and attribute.i:
                yield attribute.i
