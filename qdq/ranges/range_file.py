"""Ranges in files: whole or refused, and the same bytes for the same ranges."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qdq.errors import DataError
from qdq.files.output import write_atomic
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import Histogram
from qdq.ranges.tensor_ranges import Ranges

#: What a file of ranges begins with; behind it stand its version, the SHA-256 of the rest, and a line's end.
MAGIC = b"qdq-ranges"
_VERSION = b"1"
T = TypeVar("T")


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a run has come."""

    #: What the run is made from: ranges of another run may not go on from here.
    run: str
    #: For each pass over the samples, what it observed; all finished but the last.
    passes: tuple[Ranges, ...] = ()


def encode_ranges(record: Ranges | Checkpoint) -> bytes:
    """Return ranges or a checkpoint as the content of a file."""
    content = msgspec.msgpack.encode(record, enc_hook=_plain)
    return b"%s %s %s\n" % (MAGIC, _VERSION, hashlib.sha256(content).hexdigest().encode()) + content


def write_ranges(path: Path, record: Ranges | Checkpoint) -> None:
    """Write ranges or a checkpoint, whole or not at all; raises UsageError when the system refuses."""
    write_atomic(path, encode_ranges(record))


def read_ranges(path: Path) -> Ranges:
    """Return the ranges in a file; raises DataError naming the file where it holds none, is damaged or cut short."""
    return decode_ranges(_read(path), str(path))


def decode_ranges(content: bytes, name: str) -> Ranges:
    """Return the ranges in a file's content; raises DataError naming it."""
    return _decoded(content, name, Ranges)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file; raises DataError naming the file where it holds none, is damaged or cut short."""
    return _decoded(_read(path), str(path), Checkpoint)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _decoded(content: bytes, name: str, kind: type[T]) -> T:
    head, _, rest = content.partition(b"\n")
    magic, _, stamp = head.partition(b" ")
    if magic != MAGIC:
        raise DataError(
            f"{name}: is no file of observed ranges; 'qdq calibrate --save-ranges' writes them"
        )
    version, _, digest = stamp.partition(b" ")
    if version != _VERSION:
        raise DataError(f"{name}: was written by another version of qdq; observe the ranges again")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise DataError(
            f"{name}: is damaged or cut short; copy it again, or observe the ranges again"
        )
    try:
        return msgspec.msgpack.decode(rest, type=kind, dec_hook=_restored)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(
            f"{name}: does not hold {'ranges' if kind is Ranges else 'a checkpoint'}: {error}; pass a file of observed ranges"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, (Histogram, ExactSum)):
        return value.to_bytes()
    raise TypeError(f"{type(value).__name__} is not part of ranges")


def _restored(kind: type, content: Any) -> Any:
    if kind in (Histogram, ExactSum) and isinstance(content, bytes):
        return kind.from_bytes(content)
    raise TypeError(f"{kind.__name__} is not part of ranges")
