"""A path, ModelProto or graphsurgeon Graph becomes a Source: the model, its digest and where it lies."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo

from qdq.errors import ModelError, first_line
from qdq.graph.function_inliner import inline_functions
from qdq.graph.model_checks import check_external_data, check_nodes, check_weights
from qdq.graph.opset import default_opset, raise_opset
from qdq.graph.source import ModelLike, Source, canonical_bytes, external_tensors, file_stamp
from qdq.graph.topological_sort import order_nodes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: An ONNX file begins with the tag of `ir_version`.
_FIRST_FIELD = b"\x08"
_CHUNK = 1 << 20


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
    return Source(
        None,
        raised,
        hashlib.sha256(canonical_bytes(proto)).hexdigest(),
        notes,
        given_opset=default_opset(proto),
    )


def raise_source_opset(source: Source, opset: int) -> Source:
    """Return a Source whose model has at least this opset: itself where it has; raises ModelError where that cannot be."""
    if default_opset(source.model) >= opset:
        return source
    try:
        model, notes = raise_opset(source.model, opset)
    except ModelError as error:
        raise ModelError(f"{source.path or source.name}: {error}") from error
    return msgspec.structs.replace(source, model=model, notes=(*source.notes, *notes))


def _load_path(path: Path) -> Source:
    stamp = file_stamp(path)
    content = read_file(path)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hashlib.sha256, content)
        model = parse_model(content, path)
        check_external_data(model, path)
        raised, notes = _raised(path, model)
    for file in _external_paths(model, path):
        _hash_file(digest.result(), file)
    return Source(path, raised, digest.result().hexdigest(), notes, stamp, default_opset(model))


def read_file(path: Path) -> bytes:
    """Return the file's bytes; raises ModelError where there is no such file or it is a Git LFS pointer."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if content.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path}: is a Git LFS pointer, not the model itself; run 'git lfs pull' first"
        )
    return content


def parse_model(content: bytes, path: Path) -> onnx.ModelProto:
    """Return the model in `content`; raises ModelError for anything that is not a whole ONNX model."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        starts_well = content[:1] == _FIRST_FIELD
        what = "is truncated or damaged" if starts_well else "is not an ONNX file"
        raise ModelError(
            f"{path}: {what} ({len(content)} bytes); export or download it again"
        ) from error
    if not model.ir_version or not model.opset_import:
        raise ModelError(
            f"{path}: is not an ONNX model (no IR version or opset); export or download it again"
        )
    if not model.graph.node:
        raise ModelError(
            f"{path}: is truncated or empty: its graph has no nodes; export or download it again"
        )
    return model


def _raised(path: Path | None, model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    try:
        check_nodes(model)
        check_weights(model)
        ordered, sorting = order_nodes(model)
        inlined, notes = inline_functions(ordered)
        raised, more = raise_opset(inlined)
        return raised, (*sorting, *notes, *more)
    except ModelError as error:
        raise ModelError(f"{path or model.graph.name or 'model'}: {error}") from error


def _from_graphsurgeon(graph: gs.Graph) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    if not isinstance(graph, gs.Graph):
        raise ModelError(
            f"cannot load a model from {type(graph).__name__}: pass a path, an onnx.ModelProto or a graphsurgeon Graph"
        )
    model: onnx.ModelProto = gs.export_onnx(graph)
    return model


def _external_paths(model: onnx.ModelProto, path: Path) -> list[Path]:
    return [
        path.parent / name
        for name in sorted({ExternalDataInfo(t).location for t in external_tensors(model)})
    ]


def _hash_file(digest: hashlib._Hash, path: Path) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from error
