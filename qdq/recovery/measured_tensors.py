"""The tensors at which the error of a quantized model is measured.

A Softmax or Sigmoid at the end hides the error of a sample that it saturates, and a few undecided
samples make up the whole error of its output. Its input is measured in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qdq.graph.index import GraphIndex
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators

_SATURATING = ("LogSoftmax", "Sigmoid", "Softmax")

#: Operators between a Softmax and an output, which change no values.
_PASSES_VALUES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def find_measured_tensors(index: GraphIndex, libraries: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return float tensors of the main graph: its outputs, or the inputs of a Softmax before them.

    Where ONNX Runtime and `libraries` lack the operators for an output, the last tensors before
    these operators take its place.
    """
    unknown = find_unknown_operators(index.source.model, libraries)
    computed = find_computed_outputs(index, unknown)
    measured: dict[str, None] = {}
    for name in computed.names:
        tensor = _find_unsaturated(index, name)
        if index.is_float(tensor) and not index.is_constant(tensor):
            measured[tensor] = None
    return tuple(measured)


def _find_unsaturated(index: GraphIndex, output: str) -> str:
    """Return the input of the Softmax or Sigmoid that computes an output, or the output."""
    node = index.producers.get(output)
    while node is not None and node.op in _PASSES_VALUES:
        node = index.producers.get(node.inputs[0])
    if node is None or node.op not in _SATURATING:
        return output
    scores: str = node.inputs[0]
    return scores
