"""The copy of a model that a compiler reads: fixed shapes, nodes named so that logs can be read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import onnx

from qdq.graph.bodies import all_nodes
from qdq.graph.source import Source

_TOKEN = re.compile(r"qdq_node_(\d+)_")


def find_labels(text: str, labels: list[str]) -> tuple[str, ...]:
    """Return the labels of the nodes whose tokens stand in a text, each once, in order."""
    return tuple(dict.fromkeys(labels[int(token[1])] for token in _TOKEN.finditer(text)))


def write_compilable(
    model: onnx.ModelProto | Source, shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> Path:
    """Write the copy of a model that the compiler reads into a folder, its external data within reach, and return its path."""
    path = folder / "model.onnx"
    path.write_bytes(
        make_compilable(
            model.model if isinstance(model, Source) else model, shapes
        ).SerializeToString()
    )
    if isinstance(model, Source) and model.folder:
        _link(model, folder)
    return path


def make_compilable(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """Return a copy for the compiler: its inputs of fixed shape, its nodes named so that any log can be read.

    Dynamic dimensions that no shape is given for become 1. Writing the shapes into the copy, and
    not into an optimization profile, keeps unlike dimensions of one name (``?``) apart.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for i, (_, node) in enumerate(list(all_nodes(copy.graph))):
        node.name = f"qdq_node_{i}_"
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            wanted = (
                shapes[value.name][axis]
                if len(shapes.get(value.name, ())) == len(dims)
                else dim.dim_value
            )
            dim.dim_value = max(int(wanted), 1)
    return copy


def replace_tokens(text: str, labels: list[str]) -> str:
    """Return a text of the compiler with the labels of nodes in place of their tokens."""
    return _TOKEN.sub(lambda token: labels[int(token[1])], text)


def _link(source: Source, folder: Path) -> None:
    """Make the external data files of a model reachable from the copy in `folder`."""
    for name in source.external_files:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((source.folder or folder).resolve() / name)
