"""Files of ranges: read whole or refused, with the same bytes for the same ranges."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qdq.errors import DataError
from qdq.files.command_files import note_input
from qdq.files.output import write_atomic
from qdq.ranges.exact_sum import ExactSum
from qdq.ranges.histogram import Histogram
from qdq.ranges.tensor_ranges import Ranges

#: The first bytes of a file of ranges. Its version, the SHA-256 of the rest and a line end follow.
RANGES_MAGIC = b"qdq-ranges"
_VERSION = b"1"
T = TypeVar("T")


class Checkpoint(msgspec.Struct, frozen=True):
    """The progress of a run."""

    #: The identity of the run: only the same run may continue from here.
    run: str
    #: The ranges of each pass over the samples; all are finished but the last.
    passes: tuple[Ranges, ...] = ()


def encode_ranges(record: Ranges | Checkpoint) -> bytes:
    """Return ranges or a checkpoint as the content of a file."""
    content = msgspec.msgpack.encode(record, enc_hook=_encode_statistics)
    digest = hashlib.sha256(content).hexdigest().encode()
    head = b"%s %s %s\n" % (RANGES_MAGIC, _VERSION, digest)
    return head + content


def write_ranges(path: Path, record: Ranges | Checkpoint) -> None:
    """Write ranges or a checkpoint, whole or not at all; raises UsageError where that fails."""
    write_atomic(path, encode_ranges(record))


def read_ranges(path: Path) -> Ranges:
    """Return the ranges in a file.

    Raises DataError naming the file where it holds no ranges, is damaged or truncated.
    """
    note_input(path)
    return decode_ranges(_read(path), str(path))


def decode_ranges(content: bytes, name: str) -> Ranges:
    """Return the ranges in a file's content; raises DataError naming it."""
    return _decode(content, name, Ranges, "ranges")


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file.

    Raises DataError naming the file where it holds no checkpoint, is damaged or truncated.
    """
    return _decode(_read(path), str(path), Checkpoint, "a checkpoint")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the file cannot be read: {error.strerror}. Check the path."
        ) from error


def _decode(content: bytes, name: str, kind: type[T], description: str) -> T:
    record = _check_head(content, name)
    try:
        return msgspec.msgpack.decode(record, type=kind, dec_hook=_decode_statistics)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(
            f"{name}: the file does not hold {description}: {error}. "
            "Pass a file of observed ranges."
        ) from error


def _check_head(content: bytes, name: str) -> bytes:
    """Return a file's content after its head; raises DataError where these do not fit together."""
    head, _, record = content.partition(b"\n")
    magic, _, stamp = head.partition(b" ")
    version, _, digest = stamp.partition(b" ")
    if magic != RANGES_MAGIC:
        raise DataError(
            f"{name}: the file holds no observed ranges. "
            "Write one with 'qdq calibrate --save-ranges'."
        )
    if version != _VERSION:
        raise DataError(
            f"{name}: the file was written by another version of qdq. Observe the ranges again."
        )
    if hashlib.sha256(record).hexdigest().encode() != digest:
        raise DataError(
            f"{name}: the file is truncated or damaged. Copy it or observe the ranges again."
        )
    return record


def _encode_statistics(value: Any) -> Any:
    if isinstance(value, (Histogram, ExactSum)):
        return value.to_bytes()
    raise TypeError(f"{type(value).__name__} is not part of ranges")


def _decode_statistics(kind: type, content: Any) -> Any:
    if kind in (Histogram, ExactSum) and isinstance(content, bytes):
        return kind.from_bytes(content)
    raise TypeError(f"{kind.__name__} is not part of ranges")
