"""The tensors at which noise is measured: the outputs, or the scores before a final Softmax.

Softmax and Sigmoid saturate. Of confident samples they show no noise at all, and of a few others
so much that these alone would decide. Before them noise adds up, and a few samples are enough.
Softmax does not depend on the mean of its scores, which is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from qdq.arrays import Array
from qdq.graph.aliases import find_origin
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import MOVES_VALUES
from qdq.graph.opset import default_opset

_SOFTMAX = ("Softmax", "LogSoftmax")
_SATURATING = (*_SOFTMAX, "Sigmoid", "Tanh", "HardSigmoid")

#: The first opset at which Softmax normalizes one axis, and not all from `axis` on.
_FIRST_AXIS_OPSET = 13


class ScoredTensor(msgspec.Struct, frozen=True):
    """A tensor that stands for an output."""

    name: str
    #: The axis over which the mean is left out, None to keep it.
    centered_axis: int | None = None

    def score(self, values: Array) -> Array:
        """Return the values to compare."""
        if self.centered_axis is None or values.dtype.kind != "f":
            return values
        if not -values.ndim <= self.centered_axis < values.ndim:
            return values
        exact = values.astype(np.float64)
        centered: Array = exact - exact.mean(axis=self.centered_axis, keepdims=True)
        return centered


def find_scored_tensors(index: GraphIndex, outputs: Iterable[str]) -> tuple[ScoredTensor, ...]:
    """Return the tensor to measure for each output, each once."""
    return tuple(dict.fromkeys(_find_scores(index, output) for output in outputs))


def _find_scores(index: GraphIndex, output: str) -> ScoredTensor:
    node = index.producers.get(find_origin(index, output))
    while node is not None and node.op in MOVES_VALUES:
        node = index.producers.get(find_origin(index, node.inputs[0]))
    if node is None or node.op not in _SATURATING:
        return ScoredTensor(output)
    scores = node.inputs[0]
    if index.is_constant(scores) or scores in index.inputs:
        return ScoredTensor(output)
    return ScoredTensor(scores, _find_softmax_axis(index, node))


def _find_softmax_axis(index: GraphIndex, node: Node) -> int | None:
    if node.op not in _SOFTMAX:
        return None
    default = -1 if default_opset(index.source.model) >= _FIRST_AXIS_OPSET else 1
    return int(node.attribute("axis", default))
