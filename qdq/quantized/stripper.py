"""Removing Q/DQ pairs: a model that qdq wrote is restored byte for byte, any other in floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.bodies import list_names, node_bodies
from qdq.graph.cancelling_casts import remove_cancelling_casts
from qdq.graph.equalized_weights import undo_equalization
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.metadata import CAST_KEYS, EQUALIZATION_KEY, FLOAT_KEY, remove_metadata
from qdq.graph.model_location import ModelLocation
from qdq.graph.pairs import QdqPair, count_readers
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.row_products import find_row_products, remove_row_products
from qdq.graph.source import ModelLike, Source
from qdq.quantized.converter import convert_to_qdq, find_unconverted
from qdq.quantized.corrected_biases import restore_biases

#: The axis of several scales where a DQ has no attribute (ONNX operator DequantizeLinear).
_DEFAULT_AXIS = 1


def strip(model: ModelLike) -> ModelProto:
    """Return a copy of the model without its Q/DQ pairs; quantized operators become float ones.

    Weights stored as integers become floats. A Q or DQ that is in no pair stays, and so does a pair
    between a graph input and output.
    Raises ModelError for a quantized operator that has no float form.
    """
    source, _ = convert_to_qdq(load(model))
    unconverted = find_unconverted(source.model)
    if unconverted:
        path = source.path or source.name
        raise ModelError(
            f"{path}: node {unconverted[0]} has no float form that qdq knows."
            " Quantize the float model it was made from."
        )
    stripped = strip_model(source.model, source.location)
    if any(entry.key == FLOAT_KEY for entry in stripped.metadata_props):
        index = GraphIndex(Source(source.path, stripped, source.digest))
        remove_cancelling_casts(stripped.graph, index)
    undo_equalization(stripped, source.name)
    return stripped


def strip_model(
    model: ModelProto, location: ModelLocation | None = None, graph: QdqGraph | None = None
) -> ModelProto:
    """Return a copy of a ModelProto without pairs and without the metadata that qdq wrote.

    Corrected biases get their first values again. The weights of an equalized model stay, with
    their record in the metadata, which `undo_equalization` reads. `graph` is the model's main graph
    where it was read before. Raises ModelError, beginning with the model's name, for stored
    integers that cannot be dequantized, and for metadata about biases that does not fit.
    """
    location = location or ModelLocation()
    stripped = ModelProto()
    stripped.CopyFrom(model)
    if graph is None:
        graph = QdqGraph(stripped.graph, location)
    has_rows = bool(find_row_products(graph))
    if has_rows:
        remove_row_products(stripped)
    if restore_biases(stripped, location) or has_rows:
        graph = QdqGraph(stripped.graph, location)
    _GraphStripper(stripped.graph, graph).strip()
    remove_metadata(stripped, kept=(EQUALIZATION_KEY, *CAST_KEYS))
    return stripped


class _GraphStripper:
    """The stripping of a graph and its bodies.

    `graph` is the copy that is changed. `contents` is the same graph, or the one it is a copy of,
    as it was before.
    """

    def __init__(self, graph: GraphProto, contents: QdqGraph) -> None:
        self.graph = graph
        self.contents = contents
        #: The inputs of each node as they are meanwhile.
        self.inputs = list(contents.inputs)
        #: The names of the initializers.
        self.initializers: set[str] = set()

    def strip(self) -> set[str]:
        """Strip the graph; return the names from graphs around it that the removed nodes read."""
        unread: set[str] = set()
        for body, contents in self._list_bodies():
            unread |= _GraphStripper(body, contents).strip()
        if not self.contents.pairs and not unread:
            return set()
        renamed = find_renamed_outputs(self.contents)
        if renamed:
            _rename_results(self.graph, renamed)
            self.contents = QdqGraph(
                self.graph, self.contents.location, self.contents.path, self.contents.outer
            )
            self.inputs = list(self.contents.inputs)
        outputs = self.contents.graph_outputs
        pairs = [pair for pair in self.contents.pairs if pair.output not in outputs]
        self._redirect({pair.output: pair.tensor for pair in pairs if pair.q is not None})
        _store_floats(self.graph, pairs, self.contents)
        self.initializers = _names(self.graph.initializer)
        return self._remove_pairs(pairs, unread)

    def _list_bodies(self) -> Iterator[tuple[GraphProto, QdqGraph]]:
        """Yield the bodies of the copy, each with what was read of it."""
        for position, bodies in self.contents.bodies.items():
            copies = node_bodies(self.graph.node[position])
            for (_, copy), (_, contents) in zip(copies, bodies, strict=True):
                yield copy, contents

    def _redirect(self, origins: dict[str, str]) -> None:
        """Make every reader of the result of a pair read the tensor before its Q instead."""
        for position, names in enumerate(self.inputs):
            if origins.keys().isdisjoint(names):
                continue
            self.inputs[position] = tuple(_find_origin(origins, name) for name in names)
            node = self.graph.node[position]
            for slot, name in enumerate(self.inputs[position]):
                node.input[slot] = name
        for body, _ in self._list_bodies():
            _redirect(body, origins)

    def _remove_pairs(self, pairs: Sequence[QdqPair], unread: set[str]) -> set[str]:
        """Remove the nodes of pairs, and the tensors that only they or nodes in bodies read.

        `unread` names the tensors that the nodes removed from bodies read. Returns the names among
        all these that graphs around this one define.
        """
        removed, readers = self._find_removable_nodes(pairs)
        operands = set(unread)
        for position in removed:
            operands.update(self.inputs[position])
        defined = {*self.contents.producers, *self.contents.graph_inputs, *self.initializers}
        dead = {name for name in operands if readers[name] == 0}
        removed |= self._find_dead_constants(dead)
        self._remove_tensors(dead, removed)
        _remove_items(self.graph.node, removed)
        return operands - defined

    def _count_readers(self) -> Counter[str]:
        """Return how often each tensor is read, as the graph is meanwhile."""
        readers = Counter(chain.from_iterable(self.inputs))
        readers.update(self.contents.graph_outputs)
        for body, _ in self._list_bodies():
            readers.update(count_readers(body))
        return readers

    def _find_removable_nodes(self, pairs: Sequence[QdqPair]) -> tuple[set[int], Counter[str]]:
        """Return the positions of the Q and DQ nodes that are not needed any longer.

        Returned too is how often each tensor is read without them.
        """
        readers = self._count_readers()
        removable: set[int] = set()
        quantized: set[str] = set()
        for pair in pairs:
            if pair.output in self.initializers or readers[pair.output] == 0:
                removable.add(pair.dq)
                quantized.add(self.inputs[pair.dq][0])
        self._subtract_readers(readers, removable)
        producers: set[int] = set()
        for pair in pairs:
            if pair.q is None:
                continue
            result = self.contents.outputs[pair.q][0]
            if result in quantized and readers[result] == 0:
                producers.add(pair.q)
        self._subtract_readers(readers, producers)
        return removable | producers, readers

    def _subtract_readers(self, readers: Counter[str], removed: Iterable[int]) -> None:
        for position in removed:
            for name in self.inputs[position]:
                readers[name] -= 1

    def _find_dead_constants(self, dead: set[str]) -> set[int]:
        """Return the positions of the Constant nodes of dead tensors."""
        positions: set[int] = set()
        for position, operator in enumerate(self.contents.operators):
            if operator == "Constant" and self.contents.outputs[position][0] in dead:
                positions.add(position)
        return positions

    def _remove_tensors(self, dead: set[str], removed: Iterable[int]) -> None:
        """Remove dead tensors and the types of removed nodes' results from the graph's lists."""
        untyped = set(dead)
        for position in removed:
            untyped.update(self.contents.outputs[position])
        untyped -= self.initializers - dead
        _remove_named(self.graph.initializer, dead)
        _remove_named(self.graph.value_info, untyped)
        _remove_named(self.graph.input, dead & self.initializers)


def _names(
    values: Iterable[ValueInfoProto] | Iterable[TensorProto],
) -> set[str]:
    return set(list_names(values))


def find_renamed_outputs(graph: QdqGraph) -> dict[str, str]:
    """Return the tensors that take the name of a graph output when their pair is removed.

    These are computed by a node of the graph and quantized for the output of that name.
    """
    outputs = graph.graph_outputs
    used = outputs.union(*(body.graph_outputs for body in graph.inner_graphs))
    renamed: dict[str, str] = {}
    for pair in graph.pairs:
        is_renamed = pair.q is not None and pair.output in outputs
        if is_renamed and pair.tensor in graph.producers and pair.tensor not in used:
            renamed.setdefault(pair.tensor, pair.output)
    return renamed


def _rename_results(graph: GraphProto, renamed: dict[str, str]) -> None:
    """Give tensors the names of graph outputs; tensors of these names get others."""
    moved = {name: f"{name}_stripped" for name in renamed.values()}
    for node in graph.node:
        for slot, name in enumerate(node.output):
            if name in moved:
                node.output[slot] = moved[name]
            elif name in renamed:
                node.output[slot] = renamed[name]
    _redirect(graph, moved)
    _redirect(graph, renamed)


def _redirect(graph: GraphProto, origins: dict[str, str]) -> None:
    """Make every reader of a tensor read its origin instead, such as the tensor before a Q."""
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in origins:
                node.input[slot] = _find_origin(origins, name)
        for _, body in node_bodies(node):
            _redirect(body, origins)


def _find_origin(origins: dict[str, str], name: str) -> str:
    while name in origins:
        name = origins[name]
    return name


def _store_floats(graph: GraphProto, pairs: Sequence[QdqPair], contents: QdqGraph) -> None:
    """Add an initializer of the float values of each DQ of stored integers, named as its output."""
    stored, location = contents.stored, contents.location
    for pair in pairs:
        names = list(filter(None, (pair.tensor, pair.scale, pair.zero_point)))
        if pair.q is not None or not stored.keys() >= set(names):
            continue
        operands = [location.read_values(stored[name]) for name in names]
        try:
            floats = _dequantize(pair, *operands)
        except (ValueError, IndexError) as error:
            raise ModelError(
                f"{location.name}: the scale of {pair.tensor!r} does not fit it."
                " Export the model again."
            ) from error
        tensor = numpy_helper.from_array(floats, pair.output)
        graph.initializer.append(tensor)


def _dequantize(pair: QdqPair, integers: Array, *parameters: Array) -> Array:
    """Return (integers - zero point) * scale (ONNX operator DequantizeLinear).

    `parameters` are the scale and, optionally, the zero point.
    """
    scale = parameters[0]
    zero_point = parameters[1] if len(parameters) > 1 else np.zeros_like(scale)
    if pair.block_size:
        scale, zero_point = _repeat_blocks(pair, integers, scale, zero_point)
    elif scale.size > 1:
        scale, zero_point = _align_channels(pair, integers, scale, zero_point)
    else:
        scale = scale.reshape(())
        zero_point = zero_point.reshape(())
    with np.errstate(over="ignore", invalid="ignore"):  # scales may be infinite or NaN
        values: Array = integers.astype(scale.dtype)
        values = values - zero_point.astype(scale.dtype)
        values = values * scale
    return values.reshape(integers.shape)


def _repeat_blocks(
    pair: QdqPair, integers: Array, scale: Array, zero_point: Array
) -> tuple[Array, Array]:
    """Return the scale and zero point of each integer, from those of its block along the axis."""
    axis = _DEFAULT_AXIS if pair.axis is None else pair.axis
    positions = np.arange(integers.shape[axis])
    blocks = positions // pair.block_size
    scales = scale.take(blocks, axis=axis)
    zero_points = np.broadcast_to(zero_point, scale.shape)
    return scales, zero_points.take(blocks, axis=axis)


def _align_channels(
    pair: QdqPair, integers: Array, scale: Array, zero_point: Array
) -> tuple[Array, Array]:
    """Return the scales and zero points of channels, shaped to broadcast along their axis."""
    axis = _DEFAULT_AXIS if pair.axis is None else pair.axis
    shape = [1] * integers.ndim
    shape[axis] = scale.size
    zero_point_shape = shape if zero_point.size > 1 else ()
    return scale.reshape(shape), zero_point.reshape(zero_point_shape)


def _remove_named(items: list[TensorProto], names: set[str]) -> None:
    positions = {i for i, name in enumerate(list_names(items)) if name in names}
    _remove_items(items, positions)


def _remove_items(items: list[NodeProto], positions: set[int]) -> None:
    """Remove the items of a repeated field at some positions."""
    for position in sorted(positions, reverse=True):
        del items[position]
