"""Labels of nodes in a model's metadata, which hold positions that inserted Casts move."""

from __future__ import annotations

from onnx import ModelProto

from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.graph.metadata import LEAVE_FLOAT_KEY, SENSITIVE_KEY

#: The label of a node without a name holds its position after this.
_POSITION = "#"

#: What stands before a label in the lines of an entry: nothing, or the gain of a layer.
_SEPARATORS = {LEAVE_FLOAT_KEY: "", SENSITIVE_KEY: " dB: "}


def holds_positions(model: ModelProto) -> bool:
    """Whether the metadata names nodes by their positions."""
    return any(
        entry.key in _SEPARATORS and _POSITION in entry.value for entry in model.metadata_props
    )


def move_labels(model: ModelProto, before: GraphIndex, after: GraphIndex) -> None:
    """Write the labels of a cast model's nodes in place of those that the nodes had before.

    Both indexes are of models without pairs; they differ in Casts. Other differences leave the
    labels as they are.
    """
    labels_before, labels_after = _list_labels(before), _list_labels(after)
    if [operator for _, operator in labels_before] != [operator for _, operator in labels_after]:
        return
    moved = {old: new for (old, _), (new, _) in zip(labels_before, labels_after, strict=True)}
    for entry in model.metadata_props:
        if entry.key in _SEPARATORS:
            lines = entry.value.split("\n")
            separator = _SEPARATORS[entry.key]
            entry.value = "\n".join(_move_line(line, separator, moved) for line in lines)


def _move_line(line: str, separator: str, moved: dict[str, str]) -> str:
    start = line.find(separator) + len(separator) if separator else 0
    label = line[start:]
    return line[:start] + moved.get(label, label)


def _list_labels(index: GraphIndex) -> list[tuple[str, str]]:
    """Return the label and operator of each node but Casts, in all bodies."""
    labels: list[tuple[str, str]] = []
    for path, scope in index.scopes.items():
        labels.extend(_label(path, node) for node in scope.nodes if node.op != "Cast")
    return labels


def _label(path: str, node: Node) -> tuple[str, str]:
    return qualified_name(path, node.label), node.op
