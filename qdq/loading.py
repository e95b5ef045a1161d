"""A path, ModelProto or graphsurgeon Graph becomes a Source: the model, its digest and where it lies."""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Union

import msgspec
import onnx
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from qdq.errors import ModelError, first_line
from qdq.inlining import inline_functions
from qdq.opset import default_opset, raise_opset
from qdq.ordering import order_nodes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

#: What the library's functions take as a model.
ModelLike = Union[str, Path, onnx.ModelProto, "gs.Graph", "Source"]

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
#: An ONNX file begins with the tag of `ir_version`.
_FIRST_FIELD = b"\x08"
#: Weights up to this many bytes stay in a light copy.
_LIGHT = 1 << 12
#: Bytes of one element, of the types that weights usually have.
_ITEM_BYTES: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.INT64: 8,
    onnx.TensorProto.INT32: 4,
}
#: Where a tensor's values may lie in its message.
_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "string_data", "double_data", "uint64_data")
_CHUNK = 1 << 20


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
        if self.path is not None and not self.notes and self.stamp == _stamp(self.path):
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return b"".join((content, canonical_bytes(addition)))
        return canonical_bytes(self.model) + canonical_bytes(addition)

    @property
    def external_files(self) -> tuple[str, ...]:
        """Relative paths of the external data files the model's tensors lie in."""
        return tuple(sorted({ExternalDataInfo(t).location for t in external_tensors(self.model)}))


def load(model: ModelLike) -> Source:
    """Return the Source of a path, ModelProto or graphsurgeon Graph, raised to opset 13 where it is older.

    Raises ModelError for a file that is missing, truncated, a Git LFS pointer or not ONNX, for
    external data that is missing or lies outside the model's folder, and for an opset below 7.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, (str, Path)):
        return _load_path(Path(model))
    proto = model if isinstance(model, onnx.ModelProto) else _from_graphsurgeon(model)
    raised, notes = _raised(None, proto)
    return Source(None, raised, hashlib.sha256(canonical_bytes(proto)).hexdigest(), notes, given_opset=default_opset(proto))


def raise_source(source: Source, opset: int) -> Source:
    """Return a Source whose model has at least this opset: itself where it has; raises ModelError where that cannot be."""
    if default_opset(source.model) >= opset:
        return source
    try:
        model, notes = raise_opset(source.model, opset)
    except ModelError as error:
        raise ModelError(f"{source.path or source.name}: {error}") from error
    return msgspec.structs.replace(source, model=model, notes=(*source.notes, *notes))


def canonical_bytes(model: onnx.ModelProto) -> bytes:
    """Return the model's serialisation, the same for the same model: ONNX's messages have no map fields, whose order alone is free.

    Raises ModelError above protobuf's 2 GiB.
    """
    try:
        content: bytes = model.SerializeToString()
    except ValueError as error:
        raise ModelError(f"{model.graph.name or 'model'}: larger than 2 GiB in memory; save its weights as external data first") from error
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
            copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
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
    yield from (t for t in _tensors(model.graph) if uses_external_data(t))


def _load_path(path: Path) -> Source:
    stamp = _stamp(path)
    content = read_file(path)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hashlib.sha256, content)
        model = parse_model(content, path)
        _check_external_data(model, path)
        raised, notes = _raised(path, model)
    for file in _external_paths(model, path):
        _hash_file(digest.result(), file)
    return Source(path, raised, digest.result().hexdigest(), notes, stamp, default_opset(model))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def read_file(path: Path) -> bytes:
    """Return the file's bytes; raises ModelError where there is no such file or it is a Git LFS pointer."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if content.startswith(_LFS_POINTER):
        raise ModelError(f"{path}: is a Git LFS pointer, not the model itself; run 'git lfs pull' first")
    return content


def parse_model(content: bytes, path: Path) -> onnx.ModelProto:
    """Return the model in `content`; raises ModelError for anything that is not a whole ONNX model."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        starts_well = content[:1] == _FIRST_FIELD
        what = "is truncated or damaged" if starts_well else "is not an ONNX file"
        raise ModelError(f"{path}: {what} ({len(content)} bytes); export or download it again") from error
    if not model.ir_version or not model.opset_import:
        raise ModelError(f"{path}: is not an ONNX model (no IR version or opset); export or download it again")
    if not model.graph.node:
        raise ModelError(f"{path}: is truncated or empty: its graph has no nodes; export or download it again")
    return model


def _raised(path: Path | None, model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    try:
        _check_nodes(model)
        _check_weights(model)
        ordered, sorting = order_nodes(model)
        inlined, notes = inline_functions(ordered)
        raised, more = raise_opset(inlined)
        return raised, (*sorting, *notes, *more)
    except ModelError as error:
        raise ModelError(f"{path or model.graph.name or 'model'}: {error}") from error


def _check_nodes(model: onnx.ModelProto) -> None:
    """Raise ModelError for a node that its operator's definition rules out: too few inputs or outputs, an attribute of another type.

    Operators that ONNX does not know, such as TensorRT's plugins, are let through.
    """
    opset = default_opset(model)
    if not _are_texts(s for p in model.metadata_props for s in (p.key, p.value)):
        raise ModelError("is damaged: it holds a name that is no text; export or download it again")
    for path, graph in _graphs(model.graph):
        if not _are_texts([graph.name, *(item.name for field in (graph.input, graph.output, graph.initializer) for item in field)]):
            raise ModelError("is damaged: it holds a name that is no text; export or download it again")
        for i, node in enumerate(graph.node):
            if not _are_texts((node.op_type, node.name, *node.input, *node.output)):
                raise ModelError(f"is damaged: node {path}#{i} holds a name that is no text; export or download it again")
            schema = _schema(node.op_type, opset) if node.domain in ("", "ai.onnx") else None
            if schema is not None and (wrong := _wrong_with(node, schema)):
                raise ModelError(f"is damaged: node {path}{node.name or f'#{i}'} ({node.op_type}) has {wrong}; export or download it again")


def _are_texts(names: Iterable[object]) -> bool:
    return all(isinstance(name, str) for name in names)


def _graphs(graph: onnx.GraphProto, path: str = "") -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield a graph and its bodies, each with what stands before the labels of its nodes."""
    yield path, graph
    for i, node in enumerate(graph.node):
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(body, f"{path}{node.name or f'#{i}'}.{attribute.name}/")


def _check_weights(model: onnx.ModelProto) -> None:
    """Raise ModelError for a weight of no known type, or with less data than its dimensions need."""
    for tensor in _tensors(model.graph):
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            raise ModelError(f"is damaged: weight {tensor.name!r} has the unknown type {tensor.data_type}; export or download it again")
        needed = math.prod(tensor.dims) * _ITEM_BYTES.get(tensor.data_type, 0)
        if math.prod(tensor.dims) > 0 and not uses_external_data(tensor) and not any(getattr(tensor, field) for field in _DATA_FIELDS):
            raise ModelError(f"is damaged: weight {tensor.name!r} holds no values; export or download it again")
        if tensor.HasField("raw_data") and tensor.ByteSize() < needed:
            raise ModelError(f"is damaged: weight {tensor.name!r} holds less than the {needed} bytes of its dimensions; export or download it again")


@cache
def _schema(operator: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None


def _wrong_with(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> str:
    if len(node.input) < schema.min_input:
        return f"{len(node.input)} inputs, the operator needs {schema.min_input}"
    if len(node.output) < schema.min_output:
        return f"{len(node.output)} outputs, the operator gives {schema.min_output}"
    for kind, names, parameters in (("input", node.input, schema.inputs), ("output", node.output, schema.outputs)):
        for slot, (name, parameter) in enumerate(zip(names, parameters, strict=False)):
            if not name and parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single:
                return f"no name for {kind} {slot} ({parameter.name}), which the operator needs"
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        wanted, got = str(known.type).rpartition(".")[2] if known else "", onnx.AttributeProto.AttributeType.Name(attribute.type)
        if wanted and got != wanted:
            return f"{attribute.name!r} as {got}, the operator takes {wanted}"
    return ""


def _from_graphsurgeon(graph: gs.Graph) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    if not isinstance(graph, gs.Graph):
        raise ModelError(f"cannot load a model from {type(graph).__name__}: pass a path, an onnx.ModelProto or a graphsurgeon Graph")
    model: onnx.ModelProto = gs.export_onnx(graph)
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(body)


def _external_paths(model: onnx.ModelProto, path: Path) -> list[Path]:
    return [path.parent / name for name in sorted({ExternalDataInfo(t).location for t in external_tensors(model)})]


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in external_tensors(model):
        try:
            info = ExternalDataInfo(tensor)
            file = (folder / info.location).resolve()
            size = file.stat().st_size if file.is_file() else None
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path}: external data of tensor {tensor.name!r} cannot be found: {first_line(error)}; export the model again") from error
        if not file.is_relative_to(folder):
            raise ModelError(f"{path}: tensor {tensor.name!r} points to {info.location!r}, outside the model's folder; save the model with its data beside it")
        if size is None:
            raise ModelError(f"{path}: external data file {info.location!r} of tensor {tensor.name!r} is missing; put it beside the model")
        if size < (info.offset or 0) + (info.length or 0):
            raise ModelError(f"{path}: external data file {info.location!r} ends before tensor {tensor.name!r}; it is truncated; download or export it again")


def _hash_file(digest: hashlib._Hash, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from error
