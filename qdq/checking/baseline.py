"""Baselines: known findings that are not reported again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from qdq.checking.finding import Finding
from qdq.checking.selection import relative_posix_path
from qdq.errors import UsageError
from qdq.files.command_files import note_input
from qdq.printable import encodable_name, escape_json

BASELINE_VERSION = 1


class BaselineEntry(msgspec.Struct, frozen=True, order=True):
    """A finding in a baseline."""

    #: Path of the model relative to the baseline's folder, with forward slashes.
    model: str
    #: Code of the finding.
    code: str
    #: Its edge or node.
    where: str


class _Baseline(msgspec.Struct, forbid_unknown_fields=True):
    qdq_baseline: int
    findings: tuple[BaselineEntry, ...]


def read_baseline(path: Path) -> frozenset[BaselineEntry]:
    """Return the findings in a baseline file.

    Raises UsageError for a file that `encode_baseline` did not write.
    """
    note_input(path)
    return _read_baseline(path)


def _read_baseline(path: Path) -> frozenset[BaselineEntry]:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Baseline)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: the baseline does not exist. Write it with --write-baseline {path}."
        ) from error
    except OSError as error:
        raise UsageError(
            f"{path}: the file cannot be read: {error.strerror}. Check the path."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: the file is not a qdq baseline: {error}. Write one with --write-baseline."
        ) from error
    version = content.qdq_baseline
    if version != BASELINE_VERSION:
        raise UsageError(
            f"{path}: the baseline has version {version}, but this qdq reads {BASELINE_VERSION}. "
            "Write it again with --write-baseline."
        )
    return frozenset(content.findings)


def encode_baseline(known: Iterable[BaselineEntry]) -> bytes:
    """Return the content of a baseline file.

    Entries are sorted, one per line, so that a diff shows each change.
    """
    entries = sorted(set(known))
    lines = ",\n".join(f"  {escape_json(msgspec.json.encode(entry).decode())}" for entry in entries)
    body = f"[\n{lines}\n ]" if lines else "[]"
    return f'{{"qdq_baseline": {BASELINE_VERSION}, "findings": {body}}}\n'.encode()


def make_entries(
    path: Path, baseline: Path, findings: Iterable[Finding]
) -> tuple[BaselineEntry, ...]:
    """Return the baseline entries of the findings in a model file."""
    model = encodable_name(relative_posix_path(path, baseline.parent))
    return tuple(BaselineEntry(model, finding.code, finding.where) for finding in findings)


def is_baseline(path: Path) -> bool:
    """Whether a file is a baseline, which may be replaced."""
    try:
        _read_baseline(path)
    except UsageError:
        return False
    return True
