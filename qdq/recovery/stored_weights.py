"""Stored tensors of a graph whose channels may be scaled, because one node alone reads them."""

from __future__ import annotations

import numpy as np

from qdq.graph.compiler_view import CompilerView
from qdq.graph.equalized_weights import can_scale, map_stored_tensors
from qdq.graph.operators import MOVES_VALUES
from qdq.graph.patterns import trace_axis_to_input


class StoredWeights:
    """The stored tensors of the main graph."""

    def __init__(self, index: CompilerView) -> None:
        self._index = index
        self._stored = map_stored_tensors(index.graph)

    def locate(self, tensor: str, axis: int) -> tuple[str, int] | None:
        """Return the stored tensor of a constant operand, and the axis there of one of its axes.

        Operators that only move values may be between the two. None where something else reads a
        tensor on the way, and where the stored values cannot be scaled.
        """
        index = self._index
        while index.is_constant(tensor) and self._has_sole_reader(tensor):
            if tensor in self._stored:
                return (tensor, axis) if can_scale(self._stored[tensor]) else None
            producer = index.producers.get(tensor)
            if producer is None or producer.op not in MOVES_VALUES:
                return None
            input_axis = trace_axis_to_input(index, producer, axis)
            if input_axis is None:
                return None
            tensor, axis = producer.inputs[0], input_axis
        return None

    def is_zero(self, tensor: str) -> bool:
        """Whether all values of a constant are 0."""
        return not np.any(self._index.constant(tensor))

    def _has_sole_reader(self, tensor: str) -> bool:
        readers = self._index.consumers.get(tensor, ())
        if len(readers) != 1 or tensor in self._index.outputs:
            return False
        return readers[0][1] >= 0
