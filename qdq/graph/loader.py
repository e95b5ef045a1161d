"""Loading of a path, ModelProto or graphsurgeon Graph as a Source with a digest."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.message import DecodeError
from onnx import ModelProto

from qdq.arguments import to_path
from qdq.errors import ModelError, first_line
from qdq.files.command_files import note_input
from qdq.graph.function_inliner import inline_functions
from qdq.graph.model_checks import check_external_data, check_nodes, check_weights
from qdq.graph.opset import default_opset, raise_opset
from qdq.graph.source import ModelLike, Source, canonical_bytes, external_locations, file_stamp
from qdq.graph.tensorrt_pairs import convert_tensorrt_pairs, holds_tensorrt_pairs
from qdq.graph.topological_sort import order_nodes
from qdq.stage_log import timed_stage

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: An ONNX file begins with the tag of `ir_version`.
_FIRST_FIELD = b"\x08"
_CHUNK = 1 << 20


def load(model: ModelLike) -> Source:
    """Return the Source of a path, ModelProto or graphsurgeon Graph.

    Its model is raised to opset 13 where it is older.
    Raises ModelError for a file that is missing, truncated, a Git LFS pointer or not ONNX, for
    external data that is missing or outside the model's folder, and for an opset below 7.
    """
    if isinstance(model, Source):
        return model
    if isinstance(model, (str, os.PathLike)):
        return _load_path(to_path(model, "model"))
    proto = model if isinstance(model, ModelProto) else _from_graphsurgeon(model)
    normalized, notes = _normalize(None, proto)
    digest = hashlib.sha256(canonical_bytes(proto)).hexdigest()
    return Source(
        None,
        normalized,
        digest,
        notes,
        given_opset=_find_own_opset(proto, normalized),
        given_ir_version=proto.ir_version,
    )


def raise_source_opset(source: Source, opset: int, kind: str = "") -> Source:
    """Return a Source whose model has at least this opset: the same one where it has already.

    `kind` is the type of Q/DQ that needs it, as ``FP8``.
    Raises ModelError where the model cannot be converted.
    """
    if default_opset(source.model) >= opset:
        return source
    try:
        model, notes = raise_opset(source.model, opset, kind)
    except ModelError as error:
        raise ModelError(f"{source.path or source.name}: {error}") from error
    return msgspec.structs.replace(source, model=model, notes=(*source.notes, *notes))


@timed_stage("reading the model")
def _load_path(path: Path) -> Source:
    stamp = file_stamp(path)
    content = read_file(path)
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(hashlib.sha256, content)
        model = parse_model(content, path)
        external_files = check_external_data(model, path)
        given_ir_version = model.ir_version
        normalized, notes = _normalize(path, model)
    digest = hashing.result()
    for location in external_files:
        _hash_file(digest, path.parent / location)
    given_opset = _find_own_opset(model, normalized)
    return Source(path, normalized, digest.hexdigest(), notes, stamp, given_opset, given_ir_version)


def note_model_files(path: Path) -> None:
    """Record the files of a model as inputs of the command, before it is loaded.

    A file that is no model has none. Raises UsageError where the command writes one of them.
    """
    try:
        model = parse_model(read_file(path), path)
    except ModelError:
        return
    for location in external_locations(model):
        note_input(path.parent / location)


def read_file(path: Path) -> bytes:
    """Return the file's bytes.

    Raises ModelError where there is no such file or it is a Git LFS pointer.
    """
    note_input(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file exists. Fix the path.") from error
    except OSError as error:
        raise ModelError(
            f"{path}: the file cannot be read: {error.strerror}. Fix the path or its permissions."
        ) from error
    if content.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path}: the file is a Git LFS pointer, not the model itself. "
            "Run 'git lfs pull' first."
        )
    return content


def parse_model(content: bytes, path: Path) -> ModelProto:
    """Return the model in `content`; raises ModelError for anything but a complete ONNX model."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        starts_well = content[:1] == _FIRST_FIELD
        defect = "is truncated or damaged" if starts_well else "is not an ONNX file"
        raise ModelError(
            f"{path}: the file {defect} ({len(content)} bytes). Export or download it again."
        ) from error
    if not model.ir_version or not model.opset_import:
        raise ModelError(
            f"{path}: the file is not an ONNX model (no IR version or opset). "
            "Export or download it again."
        )
    if not model.graph.node:
        raise ModelError(
            f"{path}: the file is truncated or empty: its graph has no nodes. "
            "Export or download it again."
        )
    return model


def _normalize(path: Path | None, model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """Return a checked model with notes of the changes.

    Its nodes are sorted, its functions inlined, its opset raised, and Q/DQ of TensorRT are ONNX's.
    """
    try:
        operators = check_nodes(model)
        check_weights(model)
        ordered, order_notes = order_nodes(model)
        inlined, inlining_notes = inline_functions(ordered)
        if inlined is not ordered:
            operators = check_nodes(inlined)
        plain, pair_notes = convert_tensorrt_pairs(inlined, operators)
        raised, opset_notes = raise_opset(plain)
    except ModelError as error:
        place = path or model.graph.name or "model"
        raise ModelError(f"{place}: {error}") from error
    return raised, (*order_notes, *inlining_notes, *pair_notes, *opset_notes)


def _find_own_opset(model: ModelProto, normalized: ModelProto) -> int:
    """Return the opset of a model before it was raised.

    TensorRT's own Q/DQ need none, so with them it is the opset that ONNX's need.
    """
    if normalized is model or not holds_tensorrt_pairs(model):
        return default_opset(model)
    return default_opset(normalized)


def _from_graphsurgeon(graph: gs.Graph) -> ModelProto:
    gs = sys.modules.get("onnx_graphsurgeon")  # who has a Graph has imported it
    if gs is None or not isinstance(graph, gs.Graph):
        raise ModelError(
            f"A model cannot be loaded from {type(graph).__name__}. "
            "Pass a path, an onnx.ModelProto or a graphsurgeon Graph."
        )
    model: ModelProto = gs.export_onnx(graph)
    return model


def _hash_file(digest: hashlib._Hash, path: Path) -> None:
    note_input(path)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(
            f"{path}: the file cannot be read: {first_line(error)}. Fix its permissions."
        ) from error
