"""What changed between two models' Q/DQ: pairs added, removed, moved and rescaled, and whatever else differs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.graph.bodies import qualified_name, read_tensor_values
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.metadata import METADATA_PREFIX
from qdq.graph.node_matching import NodePlace, match_nodes
from qdq.graph.patterns import can_commute_with_quantization
from qdq.graph.source import ModelLike
from qdq.quantized.model import QuantizedEdge, QuantizedModel

#: What becomes of a pair.
ADDED, REMOVED, MOVED, RESCALED, FORMAT = "added", "removed", "moved", "rescaled", "format"

#: Digits of a scale in words.
_DIGITS = 6
_Slot = tuple[str, str, int]


class PairChange(msgspec.Struct, frozen=True):
    """One pair that stands in only one of two models, stands elsewhere, or quantizes otherwise."""

    #: ``added``, ``removed``, ``moved``, ``rescaled``, or ``format`` for another element type, axis or zero point.
    kind: str
    #: The edge in the newer model; of a removed pair the one in the older.
    edge: Edge
    #: Where a moved pair stood in the older model, else None.
    moved_from: Edge | None
    #: How the pair quantizes in each model, "" where it is not there.
    old: str
    new: str
    #: New scale over old, of channels the one farthest from 1; None where one of them is unknown, or their numbers differ.
    ratio: float | None
    #: The rules written on the pair, in the newer model if they are there; "" where there are none.
    rules: str


class WeightChange(msgspec.Struct, frozen=True):
    """One stored float tensor whose values differ, by the first edge that reads it."""

    edge: Edge
    #: The largest difference of a value; None where the dimensions differ.
    largest_change: float | None


class PairDiff(msgspec.Struct, frozen=True):
    """Everything in which the Q/DQ of a model differs from an older one's, and what differs besides."""

    old: str
    new: str
    #: How many edges are quantized in each.
    old_pairs: int
    new_pairs: int
    pairs: tuple[PairChange, ...]
    #: Nodes of the newer float graph that the older lacks, and the other way round, as ``label (operator)``.
    nodes_added: tuple[str, ...]
    nodes_removed: tuple[str, ...]
    weights: tuple[WeightChange, ...]
    #: What qdq wrote into the models where it differs: key, old, new.
    metadata: tuple[tuple[str, str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.pairs)


def diff(old: ModelLike, new: ModelLike) -> PairDiff:
    """Return what changed from the Q/DQ of an older model to those of a newer one; either may have none.

    Raises ModelError for a model that cannot be read.
    """
    return diff_pairs(QuantizedModel(old), QuantizedModel(new))


def diff_pairs(old: QuantizedModel, new: QuantizedModel) -> PairDiff:
    """Return what changed from one quantized model to another, which may be of another export.

    Edges are matched by node, as `qdq.samenodes` matches them, and slot. A pair has moved if it was
    removed from one edge and added to another that reads the same tensor, or one that comes from it through
    operators that commute with quantization.
    """
    places = match_nodes(old.index, new.index)
    return PairDiff(
        old=old.source.name,
        new=new.source.name,
        old_pairs=len(old.edges),
        new_pairs=len(new.edges),
        pairs=tuple(_pair_changes(old, new, places)),
        nodes_added=tuple(_unmatched(new.index, set(places))),
        nodes_removed=tuple(_unmatched(old.index, set(places.values()))),
        weights=tuple(_weight_changes(old.index, new.index, places)),
        metadata=tuple(_metadata_changes(old, new)),
    )


def _pair_changes(
    old: QuantizedModel, new: QuantizedModel, places: Mapping[NodePlace, NodePlace]
) -> Iterator[PairChange]:
    """Yield the changes in the newer model's order of edges, then what is gone, in the older's."""
    had = {_slot(q.edge): q for q in old.edges}
    known = {
        _slot(q.edge): had.get(slot) if (slot := _old_slot(q.edge, places)) else None
        for q in new.edges
    }
    kept = {_slot(q.edge) for q in known.values() if q}
    gone = [q for q in old.edges if _slot(q.edge) not in kept]
    moves = _moves(
        old.index, new.index, gone, [q for q in new.edges if not known[_slot(q.edge)]], places
    )
    for now in new.edges:
        was = known[_slot(now.edge)] or moves.get(_slot(now.edge))
        if kind := _kind(was, now, moved=not known[_slot(now.edge)]):
            yield _change(kind, was, now)
    stayed = {_slot(q.edge) for q in moves.values()}
    yield from (_change(REMOVED, was, None) for was in gone if _slot(was.edge) not in stayed)


def _slot(edge: Edge) -> _Slot:
    return edge.graph, edge.node, edge.slot


def _old_slot(edge: Edge, places: Mapping[NodePlace, NodePlace]) -> _Slot | None:
    place = places.get((edge.graph, edge.node))
    return (*place, edge.slot) if place else None


def _kind(was: QuantizedEdge | None, now: QuantizedEdge, moved: bool) -> str:
    if was is None:
        return ADDED
    if moved:
        return MOVED
    if _format(was) != _format(now):
        return FORMAT
    return "" if _equal(was.scales, now.scales) else RESCALED


def _change(kind: str, was: QuantizedEdge | None, now: QuantizedEdge | None) -> PairChange:
    known = now or was
    assert known is not None  # every change has an older or a newer side
    rules = (now.pair.rules if now else "") or (was.pair.rules if was else "")
    ratio = _ratio(was.scales, now.scales) if was and now else None
    return PairChange(
        kind,
        known.edge,
        was.edge if was and kind == MOVED else None,
        _said(was),
        _said(now),
        ratio,
        rules,
    )


def _format(quantized: QuantizedEdge) -> tuple[str, int | None, tuple[int, ...]]:
    """Return element type, axis and zero points, none for zero points that are all 0."""
    zeros = (
        ()
        if quantized.zero_points is None or not np.any(quantized.zero_points)
        else tuple(map(int, quantized.zero_points.reshape(-1)))
    )
    return (
        quantized.dtype or ("uint8" if not quantized.pair.zero_point else ""),
        _axis(quantized),
        zeros,
    )


def _axis(quantized: QuantizedEdge) -> int | None:
    """Return the axis that scales go along, None for one scale."""
    if quantized.scales is None or quantized.scales.size == 1:
        return None
    return 1 if quantized.pair.axis is None else quantized.pair.axis


def _equal(old: Array | None, new: Array | None) -> bool:
    if old is None or new is None:
        return old is new
    return np.array_equal(
        old.reshape(-1), new.reshape(-1), equal_nan=old.dtype.kind == new.dtype.kind == "f"
    )


def _ratio(old: Array | None, new: Array | None) -> float | None:
    if old is None or new is None or old.size != new.size or not old.size:
        return None
    was, now = (scales.reshape(-1).astype(np.float64) for scales in (old, new))
    if not ((was > 0) & (now > 0) & np.isfinite(was) & np.isfinite(now)).all():
        return None
    ratios = now / was
    return float(ratios[np.abs(np.log(ratios)).argmax()])


def _said(quantized: QuantizedEdge | None) -> str:
    """Return a pair in words: ``int8, scale 0.0234``, ``int8, 64 scales 0.001 to 0.02 along axis 0, zero point 128``."""
    if quantized is None:
        return ""
    dtype, axis, zeros = _format(quantized)
    words = [
        dtype or "unknown type",
        _scales_said(quantized.scales) + ("" if axis is None else f" along axis {axis}"),
    ]
    if zeros:
        words.append(
            f"zero point {zeros[0]}"
            if len(set(zeros)) == 1
            else f"zero points {min(zeros)} to {max(zeros)}"
        )
    return ", ".join([*words, *([] if quantized.pair.zero_point else ["no zero point"])])


def _scales_said(scales: Array | None) -> str:
    if scales is None:
        return "computed scale"
    if scales.size == 1:
        return f"scale {float(scales.reshape(-1)[0]):.{_DIGITS}g}"
    if not scales.size:
        return "no scale"
    return f"{scales.size} scales {float(scales.min()):.{_DIGITS}g} to {float(scales.max()):.{_DIGITS}g}"


def _moves(
    old: GraphIndex,
    new: GraphIndex,
    gone: Iterable[QuantizedEdge],
    come: Iterable[QuantizedEdge],
    places: Mapping[NodePlace, NodePlace],
) -> dict[_Slot, QuantizedEdge]:
    """Return for each edge of the newer model where a pair has moved to what stood in the older: those of equal scales first."""
    by_home: defaultdict[_Home, list[QuantizedEdge]] = defaultdict(list)
    for was in gone:
        by_home[_home(old.scope(was.edge), was.edge, {})].append(was)
    moves = {}
    waiting = [(now, by_home[_home(new.scope(now.edge), now.edge, places)]) for now in come]
    for now, left in sorted(
        waiting, key=lambda item: not any(_same_scale(was, item[0]) for was in item[1])
    ):
        if left:
            moves[_slot(now.edge)] = left.pop(
                next((i for i, was in enumerate(left) if _same_scale(was, now)), 0)
            )
    return moves


#: The graph, the node that a tensor comes from and the number of its output there, or a name with the number -1 for what no node makes.
_Home = tuple[str, str, int]


def _home(index: GraphIndex, edge: Edge, places: Mapping[NodePlace, NodePlace]) -> _Home:
    """Return where the tensor of an edge comes from, operators that commute with quantization left out, as the older model has it."""
    tensor = edge.tensor
    index = index.defining_scope(tensor)
    while (maker := index.producers.get(tensor)) is not None and _moves_past(index, maker):
        tensor = maker.inputs[0]
        index = index.defining_scope(tensor)
    if maker is None:
        return index.path, tensor, -1
    graph, label = places.get((index.path, maker.label), (index.path, maker.label))
    return graph, label, maker.outputs.index(tensor)


def _moves_past(index: GraphIndex, node: Node) -> bool:
    """Whether a symmetric pair may stand before or behind a node: Relu keeps 0 and the order of values."""
    return bool(node.inputs) and (node.op == "Relu" or can_commute_with_quantization(index, node))


def _same_scale(was: QuantizedEdge, now: QuantizedEdge) -> bool:
    return _equal(was.scales, now.scales)


def _unmatched(index: GraphIndex, known: set[NodePlace]) -> Iterator[str]:
    """Yield the nodes of a float graph that are not in the other, but for constants, which the weights are compared by."""
    for path, scope in index.scopes.items():
        for node in scope.nodes:
            if (path, node.label) not in known and node.op != "Constant":
                yield f"{qualified_name(path, node.label)} ({node.op})"


def _weight_changes(
    old: GraphIndex, new: GraphIndex, places: Mapping[NodePlace, NodePlace]
) -> Iterator[WeightChange]:
    seen: set[tuple[str, str]] = set()
    for path, scope in new.scopes.items():
        for edge in scope.edges():
            place = places.get((path, edge.node))
            if place is None or (path, edge.tensor) in seen:
                continue
            before = old.scopes[place[0]]
            was, now = (
                _stored_at(before, before.by_label[place[1]], edge.slot),
                _stored_at(scope, scope.by_label[edge.node], edge.slot),
            )
            if was is None or now is None:
                continue
            seen.add((path, edge.tensor))
            if (
                (was.data_type, was.dims) != (now.data_type, now.dims)
                or was.raw_data != now.raw_data
                or not now.raw_data
            ):
                yield from _weight_change(edge, _values(old, was), _values(new, now))


def _stored_at(index: GraphIndex, node: Node, slot: int) -> onnx.TensorProto | None:
    """Return the float tensor stored for an input slot, in the graph or in a Constant; None where there is none."""
    name = node.inputs[slot] if slot < len(node.inputs) else ""
    home = index.defining_scope(name)
    tensor = home.initializers.get(name)
    if (
        tensor is None
        and (maker := home.producers.get(name)) is not None
        and maker.op == "Constant"
    ):
        tensor = maker.attribute("value")
    floats = (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BFLOAT16,
    )
    return tensor if tensor is not None and tensor.data_type in floats else None


def _values(index: GraphIndex, tensor: onnx.TensorProto) -> Array:
    return read_tensor_values(tensor, index.source.name, index.source.folder)


def _weight_change(edge: Edge, was: Array, now: Array) -> Iterator[WeightChange]:
    if was.shape != now.shape:
        yield WeightChange(edge, None)
    elif not np.array_equal(was, now, equal_nan=True):
        yield WeightChange(
            edge,
            float(np.nanmax(np.abs(now.astype(np.float64) - was.astype(np.float64)), initial=0.0)),
        )


def _metadata_changes(old: QuantizedModel, new: QuantizedModel) -> Iterator[tuple[str, str, str]]:
    was, now = (
        {p.key: p.value for p in q.source.model.metadata_props if p.key.startswith(METADATA_PREFIX)}
        for q in (old, new)
    )
    for key in sorted({*was, *now}):
        if was.get(key, "") != now.get(key, ""):
            yield key, was.get(key, ""), now.get(key, "")
