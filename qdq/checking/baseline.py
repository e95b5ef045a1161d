"""Baselines: findings that are known already and not reported again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from qdq.checking.finding import Finding
from qdq.checking.selection import relative_posix_path
from qdq.errors import UsageError

BASELINE_VERSION = 1


class BaselineEntry(msgspec.Struct, frozen=True, order=True):
    """A finding that a baseline holds."""

    #: Path of the model as seen from the baseline's folder, with forward slashes.
    model: str
    code: str
    where: str


class _Baseline(msgspec.Struct, forbid_unknown_fields=True):
    qdq_baseline: int
    findings: tuple[BaselineEntry, ...]


def read_baseline(path: Path) -> frozenset[BaselineEntry]:
    """Return the findings in a baseline file; raises UsageError for anything that `encode_baseline` did not write."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Baseline)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such baseline; --write-baseline {path} makes it") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: is no baseline of qdq: {error}; --write-baseline makes one"
        ) from error
    if content.qdq_baseline != BASELINE_VERSION:
        raise UsageError(
            f"{path}: is a baseline of version {content.qdq_baseline}, this qdq reads {BASELINE_VERSION}; write it again with --write-baseline"
        )
    return frozenset(content.findings)


def encode_baseline(known: Iterable[BaselineEntry]) -> bytes:
    """Return a baseline file: sorted, one finding a line, so that a change to it can be read in a diff."""
    lines = ",\n".join(f"  {msgspec.json.encode(each).decode()}" for each in sorted(set(known)))
    body = f"[\n{lines}\n ]" if lines else "[]"
    return f'{{"qdq_baseline": {BASELINE_VERSION}, "findings": {body}}}\n'.encode()


def make_entries(
    path: Path, baseline: Path, findings: Iterable[Finding]
) -> tuple[BaselineEntry, ...]:
    """Return the findings in a file as a baseline holds them."""
    model = relative_posix_path(path, baseline.parent)
    return tuple(BaselineEntry(model, f.code, f.where) for f in findings)


def is_baseline(path: Path) -> bool:
    """Whether a file is a baseline, which may be replaced."""
    try:
        read_baseline(path)
    except UsageError:
        return False
    return True
