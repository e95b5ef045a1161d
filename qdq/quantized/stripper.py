"""Taking Q/DQ out again: a model that qdq wrote comes back byte for byte, others as floats."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.bodies import node_bodies, read_tensor_values
from qdq.graph.loader import load
from qdq.graph.metadata import remove_metadata
from qdq.graph.pairs import QdqPair, count_readers, find_pairs, stored_tensors
from qdq.graph.source import ModelLike
from qdq.quantized.converter import convert_to_qdq, find_unconverted


def strip(model: ModelLike) -> onnx.ModelProto:
    """Return a copy of the model without its Q/DQ pairs; quantized operators become float ones.

    Weights stored as integers become floats; a Q or DQ that is no pair stays, and so does a pair between a
    graph input and output. Raises ModelError for a quantized operator that has no float form.
    """
    source, _ = convert_to_qdq(load(model))
    if left := find_unconverted(source.model):
        raise ModelError(
            f"{source.path or source.name}: node {left[0]} has no float form that qdq knows; quantize the float model it was made from"
        )
    return strip_model(source.model, source.name, source.folder)


def strip_model(
    model: onnx.ModelProto, name: str = "model", folder: Path | None = None
) -> onnx.ModelProto:
    """Return the stripped copy of a ModelProto, with what qdq wrote into its metadata removed.

    Raises ModelError, which begins with `name`, for stored integers that cannot be turned into floats.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    _strip_graph(stripped.graph, {}, _Place(name, folder))
    remove_metadata(stripped)
    return stripped


class _Place(msgspec.Struct, frozen=True):
    """What the model is called, and the folder of its external data."""

    name: str
    folder: Path | None


def _strip_graph(
    graph: onnx.GraphProto, around: dict[str, onnx.TensorProto], place: _Place
) -> set[str]:
    """Strip a graph and its bodies; return the names from the graphs around it that what was removed had read.

    `around` holds the stored tensors of the graphs around it.
    """
    stored = around | stored_tensors(graph)
    unread = {
        name
        for node in graph.node
        for _, body in node_bodies(node)
        for name in _strip_graph(body, stored, place)
    }
    if renamed := find_renamed_outputs(graph, find_pairs(graph, around)):
        _rename_results(graph, renamed)
    pairs = [p for p in find_pairs(graph, around) if p.output not in {o.name for o in graph.output}]
    _redirect(graph, {p.output: p.tensor for p in pairs if p.q is not None})
    _store_floats(graph, [p for p in pairs if p.q is None], stored, place)
    return _remove(graph, pairs, unread)


def find_renamed_outputs(graph: onnx.GraphProto, pairs: Iterable[QdqPair]) -> dict[str, str]:
    """Return the tensors that stripping gives the name of a graph output, and that name: those quantized for it that a node of the graph makes."""
    outputs, made = (
        {o.name for o in graph.output},
        {name for node in graph.node for name in node.output},
    )
    inside = {o.name for node in graph.node for _, body in node_bodies(node) for o in body.output}
    renamed: dict[str, str] = {}
    for pair in pairs:
        if pair.output in outputs and pair.q is not None and pair.tensor in made - outputs - inside:
            renamed.setdefault(pair.tensor, pair.output)
    return renamed


def _rename_results(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Give tensors the names of graph outputs, and what had these others."""
    for node in graph.node:
        for slot, name in enumerate(node.output):
            if name in renamed.values():
                node.output[slot] = f"{name}_stripped"
            elif name in renamed:
                node.output[slot] = renamed[name]
    back = {name: f"{name}_stripped" for name in renamed.values()}
    _redirect(graph, back)
    _redirect(graph, renamed)


def _redirect(graph: onnx.GraphProto, lead: dict[str, str]) -> None:
    """Make every reader of a DQ's output read what was quantized."""
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in lead:
                node.input[slot] = _origin(lead, name)
        for _, body in node_bodies(node):
            _redirect(body, lead)


def _origin(lead: dict[str, str], name: str) -> str:
    while name in lead:
        name = lead[name]
    return name


def _store_floats(
    graph: onnx.GraphProto,
    pairs: list[QdqPair],
    constants: dict[str, onnx.TensorProto],
    place: _Place,
) -> None:
    """Replace each DQ of stored integers by an initializer of its float values, under the DQ's output name."""
    for pair in pairs:
        read = [n for n in (pair.tensor, pair.scale, pair.zero_point) if n]
        if constants.keys() >= set(read):
            given = [read_tensor_values(constants[n], place.name, place.folder) for n in read]
            try:
                values = _dequantized(
                    pair,
                    given[0],
                    given[1],
                    given[2] if len(given) > 2 else np.zeros_like(given[1]),
                )
            except (ValueError, IndexError) as error:
                raise ModelError(
                    f"{place.name}: the scale of {pair.tensor!r} does not fit it; export the model again"
                ) from error
            graph.initializer.append(numpy_helper.from_array(values, pair.output))


def _dequantized(pair: QdqPair, integers: Array, scale: Array, zero: Array) -> Array:
    """Return (integers - zero) * scale along the pair's axis, each scale for a channel or a block of them (ONNX operator DequantizeLinear)."""
    axis = 1 if pair.axis is None else pair.axis
    if pair.block_size:
        of_each = np.arange(integers.shape[axis]) // pair.block_size
        scale, zero = (
            np.broadcast_to(array, scale.shape).take(of_each, axis=axis) for array in (scale, zero)
        )
    elif scale.size > 1:
        shape = [1] * integers.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape if zero.size > 1 else ())
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    with np.errstate(over="ignore", invalid="ignore"):  # of scales that are no finite numbers
        values: Array = (integers.astype(scale.dtype) - zero.astype(scale.dtype)) * scale
    return values.reshape(integers.shape)


def _remove(graph: onnx.GraphProto, pairs: list[QdqPair], unread: set[str]) -> set[str]:
    """Remove the pairs' nodes, then the tensors that only they read, or what was removed from bodies.

    Returns the names among these that are not the graph's own.
    """
    own = (
        {i.name for i in graph.input}
        | {t.name for t in graph.initializer}
        | {o for n in graph.node for o in n.output}
    )
    left = count_readers(graph)
    floats = {t.name for t in graph.initializer}
    gone = {p.dq for p in pairs if left[p.output] == 0 or p.output in floats}
    quantized = {graph.node[i].input[0] for i in gone}
    still = count_remaining_readers(graph, gone)
    gone |= {
        p.q
        for p in pairs
        if p.q is not None
        and graph.node[p.q].output[0] in quantized
        and still[graph.node[p.q].output[0]] == 0
    }
    names = unread | {name for i in gone for name in graph.node[i].input}
    still = count_remaining_readers(graph, gone)
    dead = {name for name in names if still[name] == 0}
    gone |= {i for i, n in enumerate(graph.node) if n.op_type == "Constant" and n.output[0] in dead}
    produced = {name for i in gone for name in graph.node[i].output} - floats
    listed = dead & {t.name for t in graph.initializer}
    for field, unwanted in (
        ("initializer", dead),
        ("value_info", dead | produced),
        ("input", listed),
    ):
        _keep(
            graph,
            field,
            [i for i, item in enumerate(getattr(graph, field)) if item.name not in unwanted],
        )
    _keep(graph, "node", [i for i in range(len(graph.node)) if i not in gone])
    return names - own


def count_remaining_readers(graph: onnx.GraphProto, gone: set[int]) -> dict[str, int]:
    """Return how often each tensor is read by what is left when the nodes at some positions are gone."""
    count = count_readers(graph)
    for i in gone:
        count.subtract(graph.node[i].input)
    return count


def _keep(graph: onnx.GraphProto, field: str, positions: list[int]) -> None:
    """Keep only the items of a repeated field at the given positions."""
    items = getattr(graph, field)
    keep = set(positions)
    for i in range(len(items) - 1, -1, -1):
        if i not in keep:
            del items[i]
