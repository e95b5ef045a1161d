"""Nodes of a float model whose tensors are rounded to a 16-bit type, for measuring its noise.

ONNX Runtime computes FP16 on the CPU in float32 and leaves out the rounding between nodes, so that
a value above 65504 does not overflow there. Casts to the type and back round all the same.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from qdq.graph.float_types import FloatType, round_to_type
from qdq.graph.index import GraphIndex, Node
from qdq.graph.unique_names import UniqueNames
from qdq.precision.cast_scope import make_cast


def round_nodes(index: GraphIndex, labels: Collection[str], float_type: FloatType) -> ModelProto:
    """Return a copy of a model whose nodes of some labels read and write rounded values.

    Only nodes of the main graph are rounded. Sums inside of a node stay float32, constants
    saturate, and computed values beyond the type's range become infinite.
    """
    model = ModelProto()
    model.CopyFrom(index.source.model)
    rounding = _Rounding(index, model, float_type)
    del model.graph.node[:]
    for node in index.nodes:
        if node.label in labels:
            rounding.add_rounded(node)
        else:
            model.graph.node.append(node.proto)
    return model


class _Rounding:
    """A copy of a model's main graph while Casts are added to it."""

    def __init__(self, index: GraphIndex, model: ModelProto, float_type: FloatType) -> None:
        self._index = index
        self._graph = model.graph
        self._float_type = float_type
        self._names = UniqueNames(model.graph, include_value_info=True)

    def add_rounded(self, node: Node) -> None:
        """Append a node with Casts before and after it."""
        copy = NodeProto()
        copy.CopyFrom(node.proto)
        for slot, name in enumerate(node.inputs):
            if name and self._index.elem_type(name) == TensorProto.FLOAT:
                copy.input[slot] = self._round_input(name)
        results: list[tuple[str, str]] = []
        for slot, name in enumerate(node.outputs):
            if name and self._index.elem_type(name) == TensorProto.FLOAT:
                copy.output[slot] = self._names.fresh(f"{name}_exact")
                results.append((copy.output[slot], name))
        self._graph.node.append(copy)
        for exact, name in results:
            self._add_casts(exact, name)

    def _round_input(self, name: str) -> str:
        rounded = self._names.fresh(f"{name}_rounded")
        if not self._index.is_constant(name):
            self._add_casts(name, rounded)
            return rounded
        values = round_to_type(self._index.constant(name), self._float_type)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), rounded)
        self._graph.initializer.append(tensor)
        return rounded

    def _add_casts(self, tensor: str, result: str) -> None:
        short = self._names.fresh(f"{tensor}_short")
        self._graph.node.append(make_cast(tensor, short, self._float_type.code))
        self._graph.node.append(make_cast(short, result, TensorProto.FLOAT))
