"""FP16 tensors that become infinite, found by reading every one of them.

ONNX Runtime computes FP16 on the CPU in float32 and leaves out the rounding between nodes, so that
the outputs alone do not show a value above 65504. A tensor that is an output itself has its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto

from qdq.arrays import Array, Feed
from qdq.errors import QdqError
from qdq.graph.index import GraphIndex, Node
from qdq.runtime.session import exact_options, open_session, run_sample

#: The samples that are run.
OVERFLOW_SAMPLES = 4

#: The tensors that are read in one run, so that memory holds a part of the activations.
_TENSORS_AT_ONCE = 64

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class FloatOverflow(msgspec.Struct, frozen=True):
    """An FP16 tensor that is infinite, of finite inputs and where the float model is finite."""

    tensor: str
    #: The label of the node that computes it.
    node: str
    operator: str


def find_float_overflows(
    index: GraphIndex,
    float_index: GraphIndex,
    samples: Sequence[Feed],
    libraries: Iterable[Path] = (),
) -> tuple[FloatOverflow, ...]:
    """Return the FP16 tensors of a main graph that overflow in some samples, in graph order.

    Behind such a tensor others may be infinite too; they are left out. None are found where ONNX
    Runtime cannot run the model with all tensors as outputs.
    """
    names = list(_list_computed(index))
    if not any(index.elem_type(name) == TensorProto.FLOAT16 for name in names):
        return ()
    try:
        infinite = _find_infinite(index, names, samples, libraries)
        nodes = [node for node in index.nodes if _is_first(index, node, infinite)]
        outputs = [name for node in nodes for name in node.outputs if name in infinite]
        known = [name for name in outputs if name in float_index.producers]
        expected = _find_infinite(float_index, known, samples, libraries)
    except QdqError:
        return ()
    overflows: list[FloatOverflow] = []
    for node in nodes:
        for name in infinite.intersection(node.outputs) - expected:
            if index.elem_type(name) == TensorProto.FLOAT16:
                overflows.append(FloatOverflow(name, node.label, node.op))
    return tuple(overflows)


def _list_computed(index: GraphIndex) -> Iterator[str]:
    """Yield the float32 and FP16 tensors that nodes of the main graph compute from the inputs."""
    for node in index.nodes:
        for name in node.outputs:
            if name and index.elem_type(name) in _FLOATS and not index.is_constant(name):
                yield name


def _is_first(index: GraphIndex, node: Node, infinite: set[str]) -> bool:
    """Whether a node computes infinite values from finite ones."""
    if infinite.isdisjoint(node.outputs) or not infinite.isdisjoint(node.inputs):
        return False
    floats = [name for name in node.inputs if name and index.elem_type(name) in _FLOATS]
    constants = [index.constant(name) for name in floats if index.is_constant(name)]
    return not any(_is_infinite(values) for values in constants)


def _find_infinite(
    index: GraphIndex, names: list[str], samples: Sequence[Feed], libraries: Iterable[Path]
) -> set[str]:
    """Return which of some tensors have infinite values in a sample."""
    infinite: set[str] = set()
    if not names:
        return infinite
    session = open_session(index, names, exact_options(), libraries=libraries)
    for sample in samples:
        for start in range(0, len(names), _TENSORS_AT_ONCE):
            part = names[start : start + _TENSORS_AT_ONCE]
            results = run_sample(session, index, part, sample)
            infinite.update(name for name, values in results if _is_infinite(values))
    return infinite


def _is_infinite(values: Array) -> bool:
    return values.dtype.kind == "f" and bool(np.isinf(values).any())
