"""The copy of a model that a compiler reads, with fixed shapes and recognisable node names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import onnx

from qdq.graph.bodies import all_nodes
from qdq.graph.source import Source

#: The name of a node in the copy, with the node's position.
_TOKEN = re.compile(r"qdq_node_(\d+)_")


def find_labels(text: str, labels: list[str]) -> tuple[str, ...]:
    """Return the labels of the nodes whose tokens are in a text, without duplicates, in order."""
    positions = _TOKEN.findall(text)
    return tuple(dict.fromkeys(labels[int(position)] for position in positions))


def replace_tokens(text: str, labels: list[str]) -> str:
    """Return a text of the compiler with the labels of nodes in place of their tokens."""
    return _TOKEN.sub(lambda token: labels[int(token[1])], text)


def write_compilable(
    model: onnx.ModelProto | Source, shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> Path:
    """Write the copy of a model that the compiler reads into a folder, and return its path.

    External data files are linked next to it.
    """
    if isinstance(model, Source):
        proto = model.model
        _link_external_files(model, folder)
    else:
        proto = model
    path = folder / "model.onnx"
    copy = make_compilable(proto, shapes)
    path.write_bytes(copy.SerializeToString())
    return path


def make_compilable(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """Return a copy for the compiler: inputs of fixed shape, and nodes named by tokens.

    Dynamic dimensions without a given shape become 1. Writing the shapes into the copy, and not
    into an optimization profile, keeps different dimensions of one name (``?``) apart.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for position, (_, node) in enumerate(list(all_nodes(copy.graph))):
        node.name = f"qdq_node_{position}_"
    for graph_input in copy.graph.input:
        dims = graph_input.type.tensor_type.shape.dim
        sizes = shapes.get(graph_input.name, ())
        if len(sizes) != len(dims):
            sizes = tuple(dim.dim_value for dim in dims)
        for dim, size in zip(dims, sizes, strict=True):
            dim.dim_value = max(int(size), 1)
    return copy


def _link_external_files(source: Source, folder: Path) -> None:
    """Link the external data files of a model from the folder of its copy."""
    if source.folder is None:
        return
    source_folder = source.folder.resolve()
    for name in source.external_files:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source_folder / name)
