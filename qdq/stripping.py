"""Taking Q/DQ out again: a model that qdq wrote comes back byte for byte, others as floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from qdq.errors import ModelError
from qdq.index import Array, stored_values
from qdq.loading import ModelLike, load
from qdq.pairs import METADATA_PREFIX, FoundPair, find_pairs, readers


def strip(model: ModelLike) -> onnx.ModelProto:
    """Return a copy of the model without its Q/DQ pairs.

    Weights stored as integers become floats; a DequantizeLinear that gives a graph output, and
    a Q or DQ that is no pair, stay.
    """
    source = load(model)
    return strip_model(source.model, source.name, source.folder)


def strip_model(model: onnx.ModelProto, name: str = "model", folder: Path | None = None) -> onnx.ModelProto:
    """Return the stripped copy of a ModelProto, with what qdq wrote into its metadata removed.

    Raises ModelError, which begins with `name`, for stored integers that cannot be turned into floats.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    graph = stripped.graph
    pairs = [p for p in find_pairs(graph) if p.output not in {o.name for o in graph.output}]
    lead = {p.output: p.tensor for p in pairs if p.q is not None}
    _redirect(graph, lead)
    _store_floats(graph, [p for p in pairs if p.q is None], name, folder)
    _remove(graph, pairs)
    remove_metadata(stripped)
    return stripped


def remove_metadata(model: onnx.ModelProto) -> None:
    """Remove what qdq wrote into a model's metadata."""
    kept = [p for p in model.metadata_props if not p.key.startswith(METADATA_PREFIX)]
    if len(kept) < len(model.metadata_props):
        del model.metadata_props[:]
        model.metadata_props.extend(kept)


def _redirect(graph: onnx.GraphProto, lead: dict[str, str]) -> None:
    """Make every reader of a DQ's output read what was quantized."""
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in lead:
                node.input[slot] = _origin(lead, name)
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _redirect(body, lead)


def _origin(lead: dict[str, str], name: str) -> str:
    while name in lead:
        name = lead[name]
    return name


def _store_floats(graph: onnx.GraphProto, stored: list[FoundPair], name: str, folder: Path | None) -> None:
    """Replace each DQ of stored integers by an initializer of its float values, under the DQ's output name."""
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    for pair in stored:
        read = [n for n in (pair.tensor, pair.scale, pair.zero_point) if n]
        if constants.keys() >= set(read):
            given = [stored_values(constants[n], name, folder) for n in read]
            try:
                values = _dequantized(pair, given[0], given[1], given[2] if len(given) > 2 else np.zeros_like(given[1]))  # noqa: PLR2004 a zero point
            except (ValueError, IndexError) as error:
                raise ModelError(f"{name}: the scale of {pair.tensor!r} does not fit it, or goes by blocks, which qdq cannot undo") from error
            graph.initializer.append(numpy_helper.from_array(values, pair.output))


def _dequantized(pair: FoundPair, integers: Array, scale: Array, zero: Array) -> Array:
    """Return (integers - zero) * scale along the pair's axis (ONNX operator DequantizeLinear)."""
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[1 if pair.axis is None else pair.axis] = scale.size
    values: Array = (integers.astype(scale.dtype) - zero.astype(scale.dtype).reshape(shape)) * scale.reshape(shape)
    return values.reshape(integers.shape)


def _remove(graph: onnx.GraphProto, pairs: list[FoundPair]) -> None:
    """Remove the pairs' nodes, then the tensors that only they read."""
    left = readers(graph)
    floats = {t.name for t in graph.initializer}
    gone = {p.dq for p in pairs if left[p.output] == 0 or p.output in floats}
    quantized = {graph.node[i].input[0] for i in gone}
    still = readers_without(graph, gone)
    gone |= {p.q for p in pairs if p.q is not None and graph.node[p.q].output[0] in quantized and still[graph.node[p.q].output[0]] == 0}
    names = {name for i in gone for name in graph.node[i].input}
    still = readers_without(graph, gone)
    dead = {name for name in names if still[name] == 0}
    gone |= {i for i, n in enumerate(graph.node) if n.op_type == "Constant" and n.output[0] in dead}
    produced = {name for i in gone for name in graph.node[i].output} - floats
    for field, unwanted in (("initializer", dead), ("value_info", dead | produced)):
        _keep(graph, field, [i for i, item in enumerate(getattr(graph, field)) if item.name not in unwanted])
    _keep(graph, "node", [i for i in range(len(graph.node)) if i not in gone])


def readers_without(graph: onnx.GraphProto, gone: set[int]) -> dict[str, int]:
    """Return how often each tensor is read by what is left when the nodes at some positions are gone."""
    count = readers(graph)
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
