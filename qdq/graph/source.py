"""A loaded model with its digest and the folder of its external data."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Union

import msgspec
import onnx
from google.protobuf.message import Message
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from qdq.errors import ModelError

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


#: What the library's functions take as a model.
ModelLike = Union[str, Path, onnx.ModelProto, "gs.Graph", "Source"]

#: Weights up to this many bytes stay in a light copy.
_LIGHT = 1 << 12


class Source(msgspec.Struct, frozen=True):
    """A float model as it was given, raised to the opset that Q/DQ needs, its own functions written out."""

    #: The file it came from, or None for a model made in memory.
    path: Path | None
    #: The model; treated as read-only by every stage.
    model: onnx.ModelProto
    #: SHA-256 of the file (and of its external data), or of the model's canonical bytes.
    digest: str
    #: What the loader changed, one sentence each: an opset or IR version raised, functions inlined.
    notes: tuple[str, ...] = ()
    #: Size and time of change of the file when it was read.
    stamp: tuple[int, int] | None = None
    #: The opset that the model had when it was given, 0 where that is not known.
    given_opset: int = 0

    @property
    def name(self) -> str:
        """The file's name, or the graph's."""
        return self.path.name if self.path else self.model.graph.name or "model"

    @property
    def folder(self) -> Path | None:
        """The folder that external data is relative to."""
        return self.path.parent if self.path else None

    def bytes_with(self, addition: onnx.ModelProto) -> bytes:
        """Return the serialised model with what `addition` holds merged into it.

        Messages that stand one behind the other are read as one merged message (protobuf encoding,
        "last one wins"), so the file's own bytes serve where it is as it was read and nothing was raised.
        """
        if self.path is not None and not self.notes and self.stamp == file_stamp(self.path):
            with (
                self.path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                return b"".join((content, canonical_bytes(addition)))
        return canonical_bytes(self.model) + canonical_bytes(addition)

    @property
    def external_files(self) -> tuple[str, ...]:
        """Relative paths of the external data files the model's tensors lie in."""
        return tuple(sorted({ExternalDataInfo(t).location for t in external_tensors(self.model)}))


def canonical_bytes(model: onnx.ModelProto) -> bytes:
    """Return the model's serialisation, the same for the same model: ONNX's messages have no map fields, whose order alone is free.

    Raises ModelError above protobuf's 2 GiB.
    """
    try:
        content: bytes = model.SerializeToString()
    except ValueError as error:
        raise ModelError(
            f"{model.graph.name or 'model'}: larger than 2 GiB in memory; save its weights as external data first"
        ) from error
    return content


def light_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the data of large weights, for work on the graph alone; their names, types and dimensions stay."""
    copy = onnx.ModelProto()
    _copy_fields(model, copy, "graph")
    _copy_fields(model.graph, copy.graph, "initializer")
    for tensor in model.graph.initializer:
        if len(tensor.dims) <= 1 or tensor.ByteSize() <= _LIGHT:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
    return copy


def _copy_fields(source: Message, copy: Message, besides: str) -> None:
    """Copy every field that is set, but one."""
    for field, value in source.ListFields():
        if field.name == besides:
            continue
        if field.is_repeated:
            getattr(copy, field.name).extend(value)
        elif field.message_type:
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of the main graph and its bodies whose data lies in another file."""
    yield from (t for t in all_tensors(model.graph) if uses_external_data(t))


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return the size and modification time of a file, None where it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a graph and its bodies store: initializers and attributes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from all_tensors(body)
