"""The stored float tensors of two models whose values differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from onnx import TensorProto

from qdq.arrays import Array
from qdq.graph.bodies import read_tensor_values
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.node_matching import NodePlace

_FLOAT_TYPES = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.BFLOAT16,
)


class WeightChange(msgspec.Struct, frozen=True):
    """A stored float tensor whose values differ, by the first edge that reads it."""

    edge: Edge
    #: The largest difference of a value; None where the dimensions differ.
    largest_change: float | None


def compare_weights(
    old: GraphIndex, new: GraphIndex, places: Mapping[NodePlace, NodePlace]
) -> Iterator[WeightChange]:
    """Yield the stored float tensors that differ; `places` maps newer nodes to older ones."""
    old_scopes = old.scopes
    for path, scope in new.scopes.items():
        compared: set[str] = set()
        for edge in scope.edges():
            place = places.get((path, edge.node))
            if place is None or edge.tensor in compared:
                continue
            old_graph, old_node = place
            old_tensor = _find_stored(old_scopes[old_graph], old_node, edge.slot)
            new_tensor = _find_stored(scope, edge.node, edge.slot)
            if old_tensor is None or new_tensor is None:
                continue
            compared.add(edge.tensor)
            if not _has_same_bytes(old_tensor, new_tensor):
                old_values = _read_values(old, old_tensor)
                new_values = _read_values(new, new_tensor)
                yield from _compare_values(edge, old_values, new_values)


def _find_stored(index: GraphIndex, label: str, slot: int) -> TensorProto | None:
    """Return the float tensor stored for an input slot of a node, None where there is none.

    It is an initializer or the value of a Constant.
    """
    inputs = index.by_label[label].inputs
    name = inputs[slot] if slot < len(inputs) else ""
    scope = index.defining_scope(name)
    tensor: TensorProto | None = scope.initializers.get(name)
    producer = scope.producers.get(name)
    if tensor is None and producer is not None and producer.op == "Constant":
        tensor = producer.attribute("value")
    if tensor is None or tensor.data_type not in _FLOAT_TYPES:
        return None
    return tensor


def _has_same_bytes(old: TensorProto, new: TensorProto) -> bool:
    """Whether two tensors are equal by type, dimensions and raw data, without reading values."""
    if old.data_type != new.data_type or old.dims != new.dims:
        return False
    return bool(new.raw_data) and old.raw_data == new.raw_data


def _read_values(index: GraphIndex, tensor: TensorProto) -> Array:
    return read_tensor_values(tensor, index.source.name, index.source.folder)


def _compare_values(edge: Edge, old: Array, new: Array) -> Iterator[WeightChange]:
    if old.shape != new.shape:
        yield WeightChange(edge, None)
    elif not np.array_equal(old, new, equal_nan=True):
        with np.errstate(invalid="ignore"):  # signalling NaN and infinity
            changes = np.abs(new.astype(np.float64) - old.astype(np.float64))
        yield WeightChange(edge, float(np.nanmax(changes, initial=0.0)))
