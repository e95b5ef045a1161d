"""The Q/DQ of two models compared: pairs added, removed, moved and rescaled, and other changes."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator

import msgspec

from qdq.arguments import to_number
from qdq.errors import UsageError
from qdq.graph.bodies import qualified_name
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.metadata import BIASES_KEY, METADATA_PREFIX
from qdq.graph.node_matching import NodePlace, match_nodes
from qdq.graph.source import ModelLike
from qdq.quantized.corrected_biases import describe_corrected_biases
from qdq.quantized.model import QuantizedModel
from qdq.quantized.pair_format import (
    describe_pair,
    find_scale_ratio,
    has_same_scales,
    read_format,
)
from qdq.quantized.pair_matching import PairMatch, match_pairs
from qdq.quantized.weight_diff import WeightChange, compare_weights

#: Kinds of changes.
ADDED = "added"
REMOVED = "removed"
MOVED = "moved"
RESCALED = "rescaled"
FORMAT = "format"


class PairChange(msgspec.Struct, frozen=True):
    """A pair that only one of two models has, or that has moved or quantizes differently."""

    #: ``added``, ``removed``, ``moved``, ``rescaled``, or ``format`` for another element type,
    #: axis or zero point.
    kind: str
    #: The edge in the newer model; of a removed pair the edge in the older.
    edge: Edge
    #: The edge of a moved pair in the older model, else None.
    moved_from: Edge | None
    #: The pair's format and scales in each model, "" for the model that lacks it.
    old: str
    #: The same in the newer model, empty where it has none.
    new: str
    #: New scale over old; of channels, the ratio farthest from 1. None where a scale is unknown
    #: or their numbers differ.
    ratio: float | None
    #: The rules written on the pair, preferably in the newer model; "" where there are none.
    rules: str


class PairDiff(msgspec.Struct, frozen=True):
    """All differences of a model's Q/DQ from an older one's, and of its float graph."""

    #: Name of the older model.
    old: str
    #: Name of the newer model.
    new: str
    #: Numbers of quantized edges.
    old_pairs: int
    #: The same for the newer model.
    new_pairs: int
    pairs: tuple[PairChange, ...]
    #: Nodes of only one float graph, as ``label (operator)``.
    nodes_added: tuple[str, ...]
    #: Nodes that only the older model has.
    nodes_removed: tuple[str, ...]
    weights: tuple[WeightChange, ...]
    #: The metadata of qdq that differs: key, old, new.
    metadata: tuple[tuple[str, str, str], ...]
    #: The relative difference up to which two scales counted as the same.
    tolerance: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.pairs)


def diff(old: ModelLike, new: ModelLike, *, tolerance: float = 0.0) -> PairDiff:
    """Return the changes from an older model's Q/DQ to a newer one's; either may have none.

    Scales whose difference is at most `tolerance` times the older one count as the same. Raises
    ModelError for a model that cannot be read, and UsageError for a tolerance that is no number
    from 0.
    """
    tolerance = to_number(tolerance, "tolerance")
    if not 0.0 <= tolerance < math.inf:
        raise UsageError(f"tolerance: {tolerance:g} is no tolerance. Pass a number from 0.")
    return diff_pairs(QuantizedModel(old), QuantizedModel(new), tolerance)


def diff_pairs(old: QuantizedModel, new: QuantizedModel, tolerance: float = 0.0) -> PairDiff:
    """Return the changes from one quantized model to another, which may be of another export.

    Edges are matched by slot and node, as `match_nodes` matches nodes. A pair has moved if it was
    removed from one edge and added to another that reads the same tensor, or a tensor that comes
    from it through operators that commute with quantization. `tolerance` is as for `diff`.
    """
    places = match_nodes(old.index, new.index)
    return PairDiff(
        old=old.source.name,
        new=new.source.name,
        old_pairs=len(old.edges),
        new_pairs=len(new.edges),
        pairs=tuple(_find_changes(match_pairs(old, new, places), tolerance)),
        nodes_added=tuple(_unmatched_nodes(new.index, places.keys())),
        nodes_removed=tuple(_unmatched_nodes(old.index, set(places.values()))),
        weights=tuple(compare_weights(old.restored_index, new.restored_index, places)),
        metadata=tuple(_compare_metadata(old, new)),
        tolerance=tolerance,
    )


def _find_changes(matches: Iterator[PairMatch], tolerance: float) -> Iterator[PairChange]:
    for match in matches:
        kind = _classify(match, tolerance)
        if kind:
            yield _make_change(kind, match)


def _classify(match: PairMatch, tolerance: float) -> str:
    """Return the kind of a change, "" for an unchanged pair."""
    if match.old is None:
        return ADDED
    if match.new is None:
        return REMOVED
    if match.is_moved:
        return MOVED
    if read_format(match.old) != read_format(match.new):
        return FORMAT
    return "" if has_same_scales(match.old, match.new, tolerance) else RESCALED


def _make_change(kind: str, match: PairMatch) -> PairChange:
    old, new = match.old, match.new
    present = new or old
    assert present is not None  # a match has an older or a newer side
    rules = new.pair.rules if new else ""
    if not rules and old is not None:
        rules = old.pair.rules
    return PairChange(
        kind,
        present.edge,
        moved_from=old.edge if old and match.is_moved else None,
        old=describe_pair(old),
        new=describe_pair(new),
        ratio=find_scale_ratio(old, new) if old and new else None,
        rules=rules,
    )


def _unmatched_nodes(index: GraphIndex, matched: Container[NodePlace]) -> Iterator[str]:
    """Yield the nodes of a float graph that the other lacks.

    Constants are left out: weights are compared separately.
    """
    for path, scope in index.scopes.items():
        for node in scope.nodes:
            if (path, node.label) not in matched and node.op != "Constant":
                label = qualified_name(path, node.label)
                yield f"{label} ({node.op})"


def _compare_metadata(old: QuantizedModel, new: QuantizedModel) -> Iterator[tuple[str, str, str]]:
    """Yield key, old and new value of the metadata that differs."""
    old_metadata = read_metadata(old)
    new_metadata = read_metadata(new)
    for key in sorted(old_metadata.keys() | new_metadata.keys()):
        old_value = old_metadata.get(key, "")
        new_value = new_metadata.get(key, "")
        if old_value != new_value:
            yield key, old_value, new_value


def read_metadata(quantized: QuantizedModel) -> dict[str, str]:
    """Return the metadata that qdq wrote into a model."""
    metadata: dict[str, str] = {}
    for entry in quantized.source.model.metadata_props:
        if entry.key.startswith(METADATA_PREFIX):
            metadata[entry.key] = entry.value
    if BIASES_KEY in metadata:
        metadata[BIASES_KEY] = describe_corrected_biases(metadata[BIASES_KEY])
    return metadata
