"""Weights stored as quantized values with a DequantizeLinear alone, in place of floats and a pair.

TensorRT accepts both forms (explicit quantization, "pre-quantized weights"), and TensorRT-RTX 1.7.1
makes the same engine of them. The file is smaller, and the float weights are lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from qdq.arrays import Array
from qdq.graph.bodies import all_graphs, captured_names, node_bodies, read_tensor_values
from qdq.graph.constant_chains import explain_unknown_value
from qdq.graph.equalized_weights import find_equalization_entry
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.pairs import QdqPair, count_readers, find_pairs, stored_tensors
from qdq.graph.source import ModelLike, Source, external_tensors
from qdq.quantized.integer_values import make_quantized_tensor, quantize_values

#: The types of quantized values that are stored.
STORED_TYPES = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4)

#: The attributes of a Q that the stored values follow.
_KNOWN_ATTRIBUTES = {"axis", "block_size"}

#: The axis of several scales where a Q has no attribute (ONNX operator QuantizeLinear).
_DEFAULT_AXIS = 1

#: The most external data that is moved into a model, protobuf's limit being 2 GiB, and the bytes
#: of a value in the widest type.
_LARGEST_EMBEDDED_BYTES = 1 << 30
_WIDEST = 8

#: The inputs of a Q and of a DQ with a zero point.
_INPUT_COUNT = 3


def store_weights(model: ModelLike) -> ModelProto:
    """Return a copy of a quantized model that stores its weights as quantized values.

    Each weight is an initializer of its pair's type that a DequantizeLinear reads. Stripping the
    copy gives a model of the dequantized weights. A weight that something reads in float too keeps
    its floats and its pair, and so does one whose zero point is not 0.
    """
    return store_source_weights(load(model))


def store_source_weights(source: Source, rounded: Mapping[str, Array] | None = None) -> ModelProto:
    """Return the copy that `store_weights` returns, of a loaded model.

    `rounded` holds integers that replace the nearest ones, by the name of the pair's scale.
    """
    model = ModelProto()
    model.CopyFrom(source.model)
    index = GraphIndex(Source(source.path, model, source.digest))
    writer = _WeightWriter(index, rounded or {})
    for group in _find_weights(index):
        writer.store(group)
    writer.finish()
    return model


class _WeightPair(NamedTuple):
    """A Q on a weight, and the DQ nodes after it."""

    scope: GraphIndex
    q: NodeProto
    dqs: tuple[NodeProto, ...]
    scale: TensorProto
    #: The type of the quantized values.
    code: int

    @property
    def tensor(self) -> str:
        """The float weight."""
        return str(self.q.input[0])

    @property
    def format(self) -> tuple[int, int]:
        """The axis of the scales and the size of their blocks, 0 without blocks."""
        return _read_format(self.q)


def _find_weights(index: GraphIndex) -> Iterator[list[_WeightPair]]:
    """Yield the pairs on each weight that only pairs read."""
    groups: dict[tuple[str, str], list[_WeightPair]] = {}
    for scope, stored in _stored_by_scope(index, {}):
        for pair in _find_weight_pairs(scope, stored):
            home = scope.defining_scope(pair.tensor)
            groups.setdefault((home.path, pair.tensor), []).append(pair)
    scopes = index.scopes
    for (path, tensor), group in groups.items():
        if _count_uses(scopes[path], tensor) == len(group):
            yield group


def _stored_by_scope(
    scope: GraphIndex, around: dict[str, TensorProto]
) -> Iterator[tuple[GraphIndex, dict[str, TensorProto]]]:
    """Yield a graph and its bodies, each with the stored tensors that it can read."""
    stored = around | stored_tensors(scope.graph)
    yield scope, stored
    for body in scope.bodies:
        yield from _stored_by_scope(body, stored)


def _count_uses(scope: GraphIndex, tensor: str) -> int:
    """Return how many inputs and graph outputs read a tensor, in its graph and in the bodies."""
    count = sum(slot >= 0 for _, slot in scope.consumers.get(tensor, ()))
    count += tensor in scope.outputs
    for body in scope.bodies:
        if body.defining_scope(tensor) is not body:
            count += _count_uses(body, tensor)
    return count


def _find_weight_pairs(
    scope: GraphIndex, stored: Mapping[str, TensorProto]
) -> Iterator[_WeightPair]:
    """Yield the pairs of a graph on weights whose quantized values can be stored."""
    by_q: dict[int, list[QdqPair]] = {}
    for pair in find_pairs(scope.graph):
        if pair.q is not None:
            by_q.setdefault(pair.q, []).append(pair)
    for position, pairs in by_q.items():
        q = scope.graph.node[position]
        dqs = tuple(scope.graph.node[pair.dq] for pair in pairs)
        if len(q.input) != _INPUT_COUNT or not stored.keys() >= set(q.input[1:]):
            continue
        scale, zero_point = (stored[name] for name in q.input[1:])
        weight_pair = _WeightPair(scope, q, dqs, scale, zero_point.data_type)
        if _can_store(weight_pair, zero_point):
            yield weight_pair


def _can_store(pair: _WeightPair, zero_point: TensorProto) -> bool:
    """Whether a pair is on a weight of known value, with zero point 0 and no other reader."""
    scope, q = pair.scope, pair.q
    if pair.code not in STORED_TYPES or not scope.is_constant(pair.tensor):
        return False
    if {attribute.name for attribute in q.attribute} - _KNOWN_ATTRIBUTES:
        return False
    if explain_unknown_value(scope, pair.tensor) or pair.tensor in scope.sparse_weights:
        return False
    if q.output[0] in scope.outputs or len(scope.consumers[q.output[0]]) != len(pair.dqs):
        return False
    if any(_differs(q, dq) for dq in pair.dqs):
        return False
    source = scope.source
    return not np.any(read_tensor_values(zero_point, source.name, source.folder))


def _differs(q: NodeProto, dq: NodeProto) -> bool:
    """Whether a DQ has other scales than the Q before it, or another axis."""
    return list(q.input[1:]) != list(dq.input[1:]) or _read_format(q) != _read_format(dq)


def _read_format(node: NodeProto) -> tuple[int, int]:
    integers = {attribute.name: attribute.i for attribute in node.attribute}
    return integers.get("axis", _DEFAULT_AXIS), integers.get("block_size", 0)


class _WeightWriter:
    """Replace pairs on weights by stored values, all at the end, so that the index stays valid."""

    def __init__(self, index: GraphIndex, rounded: Mapping[str, Array]) -> None:
        self._graph = index.graph
        self._source = index.source
        self._rounded = rounded
        self._is_equalized = bool(find_equalization_entry(index.source.model))
        self._tensors: list[TensorProto] = []
        self._stored: list[tuple[_WeightPair, str]] = []
        #: The pairs whose DQ takes the name of the weight.
        self._renamed: list[_WeightPair] = []

    def store(self, group: list[_WeightPair]) -> None:
        """Store the values of all pairs on one weight.

        The DQ of a weight with one pair takes its name, by which ranges and the record of equalized
        weights find it after stripping.
        """
        is_named = len(group) == 1 and len(group[0].dqs) == 1
        is_named = is_named and group[0].dqs[0].output[0] not in group[0].scope.outputs
        if self._is_equalized and not is_named:
            return
        names: dict[tuple[bytes, tuple[int, int]], str] = {}
        for pair in group:
            values = self._round(pair)
            key = values.tobytes(), pair.format
            if key not in names:
                names[key] = pair.q.output[0]
                self._tensors.append(make_quantized_tensor(values, pair.code, names[key]))
            self._stored.append((pair, names[key]))
        if is_named:
            self._renamed.append(group[0])

    def _round(self, pair: _WeightPair) -> Array:
        rounded = self._rounded.get(pair.scale.name)
        if rounded is not None:
            return rounded
        source = pair.scope.source
        scale = read_tensor_values(pair.scale, source.name, source.folder)
        values = pair.scope.constant(pair.tensor)
        pair.scope.forget_constants()
        return quantize_values(values, scale, pair.code, *pair.format)

    def finish(self) -> None:
        """Change the graph."""
        weights = {pair.tensor for pair, _ in self._stored}
        for pair, name in self._stored:
            for dq in pair.dqs:
                dq.input[0] = name
        for pair, _ in self._stored:
            pair.scope.graph.node.remove(pair.q)
        _remove_unread(self._graph, weights)
        for pair in self._renamed:
            _rename_result(pair.scope.graph, pair.dqs[0], pair.tensor)
        self._graph.initializer.extend(self._tensors)
        _embed_external(self._source)


def _embed_external(source: Source) -> None:
    """Move the external data that is left into a model, unless it is large.

    The file that it is in holds the float weights too, and would be copied whole.
    """
    tensors = list(external_tensors(source.model))
    sizes = [math.prod(tensor.dims) * _WIDEST for tensor in tensors]
    if sum(sizes) > _LARGEST_EMBEDDED_BYTES:
        return
    for tensor in tensors:
        values = read_tensor_values(tensor, source.name, source.folder)
        embedded = numpy_helper.from_array(values, tensor.name)
        embedded.data_type = tensor.data_type
        tensor.CopyFrom(embedded)


def _remove_unread(main_graph: GraphProto, names: set[str]) -> None:
    """Remove the tensors of some names that nothing reads, and what only their nodes read."""
    has_changed = True
    while has_changed:
        readers = count_readers(main_graph)
        unread = {name for name in names if not readers[name]}
        has_changed = False
        for graph in all_graphs(main_graph):
            for position in reversed(range(len(graph.node))):
                node = graph.node[position]
                if unread.isdisjoint(node.output) or any(readers[name] for name in node.output):
                    continue
                names.update(_read_names(node))
                del graph.node[position]
                has_changed = True
            for field in (graph.initializer, graph.input, graph.value_info):
                _remove_named(field, unread)


def _read_names(node: NodeProto) -> set[str]:
    names = set(filter(None, node.input))
    for _, body in node_bodies(node):
        names |= captured_names(body)
    return names


def _remove_named(field: list[TensorProto], names: set[str]) -> None:
    for position in reversed(range(len(field))):
        if field[position].name in names:
            del field[position]


def _rename_result(graph: GraphProto, dq: NodeProto, name: str) -> None:
    """Give the result of a DQ another name."""
    old_name = dq.output[0]
    dq.output[0] = name
    for scope in all_graphs(graph):
        for node in scope.node:
            for slot, operand in enumerate(node.input):
                if operand == old_name:
                    node.input[slot] = name
        _remove_named(scope.value_info, {old_name})
