"""Removing Q/DQ pairs: a model that qdq wrote is restored byte for byte, any other in floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.bodies import node_bodies, read_tensor_values
from qdq.graph.cancelling_casts import remove_cancelling_casts
from qdq.graph.equalized_weights import undo_equalization
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.metadata import CAST_KEYS, EQUALIZATION_KEY, FLOAT_KEY, remove_metadata
from qdq.graph.pairs import QdqPair, count_readers, find_pairs, stored_tensors
from qdq.graph.row_products import remove_row_products
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
    stripped = strip_model(source.model, source.name, source.folder)
    if any(entry.key == FLOAT_KEY for entry in stripped.metadata_props):
        index = GraphIndex(Source(source.path, stripped, source.digest))
        remove_cancelling_casts(stripped.graph, index)
    undo_equalization(stripped, source.name)
    return stripped


def strip_model(model: ModelProto, name: str = "model", folder: Path | None = None) -> ModelProto:
    """Return a copy of a ModelProto without pairs and without the metadata that qdq wrote.

    Corrected biases get their first values again. The weights of an equalized model stay, with
    their record in the metadata, which `undo_equalization` reads. Raises ModelError, beginning with
    `name`, for stored integers that cannot be dequantized, and for metadata about biases that does
    not fit.
    """
    stripped = ModelProto()
    stripped.CopyFrom(model)
    remove_row_products(stripped)
    location = _ModelLocation(name, folder)
    restore_biases(stripped, name, location.read_values)
    _strip_graph(stripped.graph, {}, location)
    remove_metadata(stripped, kept=(EQUALIZATION_KEY, *CAST_KEYS))
    return stripped


class _ModelLocation(msgspec.Struct, frozen=True):
    """The name of a model and the folder of its external data."""

    name: str
    folder: Path | None

    def read_values(self, tensor: TensorProto) -> Array:
        """Return the values of a tensor of the model."""
        return read_tensor_values(tensor, self.name, self.folder)


def _strip_graph(
    graph: GraphProto, outer_tensors: dict[str, TensorProto], location: _ModelLocation
) -> set[str]:
    """Strip a graph and its bodies.

    `outer_tensors` holds the stored tensors of the graphs around it. Returns the names from these
    graphs that the removed nodes read.
    """
    stored = outer_tensors | stored_tensors(graph)
    unread: set[str] = set()
    for node in graph.node:
        for _, body in node_bodies(node):
            unread |= _strip_graph(body, stored, location)
    pairs = find_pairs(graph, outer_tensors)
    if not pairs and not unread:
        return set()
    renamed = find_renamed_outputs(graph, pairs)
    if renamed:
        _rename_results(graph, renamed)
        pairs = find_pairs(graph, outer_tensors)
    outputs = _names(graph.output)
    pairs = tuple(pair for pair in pairs if pair.output not in outputs)
    origins = {pair.output: pair.tensor for pair in pairs if pair.q is not None}
    _redirect(graph, origins)
    _store_floats(graph, pairs, stored, location)
    return _remove_pairs(graph, pairs, unread)


def _names(
    values: Iterable[ValueInfoProto] | Iterable[TensorProto],
) -> set[str]:
    return {value.name for value in values}


def _results(graph: GraphProto) -> set[str]:
    """Return the tensors that the nodes of a graph compute."""
    results: set[str] = set()
    for node in graph.node:
        results.update(node.output)
    return results


def find_renamed_outputs(graph: GraphProto, pairs: Iterable[QdqPair]) -> dict[str, str]:
    """Return the tensors that take the name of a graph output when their pair is removed.

    These are computed by a node of the graph and quantized for the output of that name.
    """
    outputs = _names(graph.output)
    candidates = _results(graph) - outputs
    for node in graph.node:
        for _, body in node_bodies(node):
            candidates -= _names(body.output)
    renamed: dict[str, str] = {}
    for pair in pairs:
        is_computed = pair.q is not None and pair.tensor in candidates
        if is_computed and pair.output in outputs:
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


def _store_floats(
    graph: GraphProto,
    pairs: Sequence[QdqPair],
    stored: dict[str, TensorProto],
    location: _ModelLocation,
) -> None:
    """Add an initializer of the float values of each DQ of stored integers, named as its output."""
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


def _remove_pairs(graph: GraphProto, pairs: Sequence[QdqPair], unread: set[str]) -> set[str]:
    """Remove the nodes of pairs, and the tensors that only they or nodes in `unread` bodies read.

    `unread` names the tensors that the nodes removed from bodies read. Returns the names among all
    these that graphs around this one define.
    """
    defined = _results(graph)
    defined |= _names(graph.input)
    defined |= _names(graph.initializer)
    readers = count_readers(graph)
    removed = _find_removable_nodes(graph, pairs, readers)
    operands = set(unread)
    for position in removed:
        operands.update(graph.node[position].input)
    dead = {name for name in operands if readers[name] == 0}
    removed |= _find_dead_constants(graph, dead)
    _remove_tensors(graph, dead, removed)
    _remove_items(graph.node, removed)
    return operands - defined


def _find_removable_nodes(
    graph: GraphProto, pairs: Sequence[QdqPair], readers: Counter[str]
) -> set[int]:
    """Return the positions of the Q and DQ nodes that are not needed any longer.

    Afterwards `readers` counts without them how often each tensor is read.
    """
    stored = _names(graph.initializer)
    removable: set[int] = set()
    quantized: set[str] = set()
    for pair in pairs:
        if pair.output in stored or readers[pair.output] == 0:
            removable.add(pair.dq)
            quantized.add(graph.node[pair.dq].input[0])
    _subtract_readers(readers, graph, removable)
    producers: set[int] = set()
    for pair in pairs:
        if pair.q is None:
            continue
        result = graph.node[pair.q].output[0]
        if result in quantized and readers[result] == 0:
            producers.add(pair.q)
    _subtract_readers(readers, graph, producers)
    return removable | producers


def _find_dead_constants(graph: GraphProto, dead: set[str]) -> set[int]:
    """Return the positions of the Constant nodes of dead tensors."""
    positions: set[int] = set()
    for position, node in enumerate(graph.node):
        if node.op_type == "Constant" and node.output[0] in dead:
            positions.add(position)
    return positions


def _remove_tensors(graph: GraphProto, dead: set[str], removed: set[int]) -> None:
    """Remove dead tensors and the types of removed nodes' results from the lists of a graph."""
    initializers = _names(graph.initializer)
    untyped = set(dead)
    for position in removed:
        results = set(graph.node[position].output)
        untyped |= results - initializers
    _remove_named(graph.initializer, dead)
    _remove_named(graph.value_info, untyped)
    _remove_named(graph.input, dead & initializers)


def count_remaining_readers(graph: GraphProto, removed: set[int]) -> Counter[str]:
    """Return how often each tensor is read when the nodes at some positions are removed."""
    readers = count_readers(graph)
    _subtract_readers(readers, graph, removed)
    return readers


def _subtract_readers(readers: Counter[str], graph: GraphProto, removed: Iterable[int]) -> None:
    for position in removed:
        readers.subtract(graph.node[position].input)


def _remove_named(items: list[TensorProto], names: set[str]) -> None:
    positions = {i for i, item in enumerate(items) if item.name in names}
    _remove_items(items, positions)


def _remove_items(items: list[NodeProto], positions: set[int]) -> None:
    """Remove the items of a repeated field at some positions."""
    for position in sorted(positions, reverse=True):
        del items[position]
