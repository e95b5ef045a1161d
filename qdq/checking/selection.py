"""The findings that a user asked for: by code, by severity and by file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from qdq.checking.catalogue import PROBLEMS, SEVERITIES
from qdq.checking.finding import Finding
from qdq.errors import UsageError, did_you_mean


def parse_codes(texts: Iterable[str], option: str) -> frozenset[str]:
    """Return the codes that some texts name; each text is a comma-separated list.

    A severity stands for all its codes. Raises UsageError, which begins with `option`, for a name
    that is neither a code nor a severity.
    """
    codes: set[str] = set()
    for text in texts:
        for name in text.split(","):
            codes |= _expand_code(name.strip(), option)
    return frozenset(codes)


def _expand_code(name: str, option: str) -> set[str]:
    """Return a code alone, or the codes of a severity."""
    if name in SEVERITIES:
        return {code for code, problem in PROBLEMS.items() if problem.severity == name}
    if name in PROBLEMS:
        return {name}
    hint = did_you_mean(name, (*PROBLEMS, *SEVERITIES))
    raise UsageError(
        f"{option}: there is no code {name!r}{hint} Run 'qdq check --codes' to list the codes."
    )


class Selection(msgspec.Struct, frozen=True):
    """The codes that are reported, for all files and for those that a glob matches."""

    select: frozenset[str]
    ignore: frozenset[str] = frozenset()
    #: Globs of paths below `folder`, each with the codes that are ignored in the matching files.
    per_file: tuple[tuple[str, frozenset[str]], ...] = ()
    folder: Path | None = None

    def of(self, path: Path, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Return the findings in one file that are reported."""
        reported = self._reported_codes(path)
        return tuple(finding for finding in findings if finding.code in reported)

    def _reported_codes(self, path: Path) -> frozenset[str]:
        relative = relative_posix_path(path, self.folder or Path())
        ignored = set(self.ignore)
        for glob, codes in self.per_file:
            if fnmatchcase(relative, glob):
                ignored |= codes
        return self.select - ignored


def relative_posix_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with forward slashes.

    The path is absolute where no relative one exists, as on another drive.
    """
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive
        return path.absolute().as_posix()
    return PurePosixPath(Path(relative).as_posix()).as_posix()


def fingerprint(finding: Finding) -> str:
    """Return a hash of a finding's code and location.

    It stays the same while the rest of the model changes.
    """
    identity = f"{finding.code}\n{finding.where}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def parse_per_file_ignores(
    ignores: Mapping[str, Any],
) -> tuple[tuple[str, frozenset[str]], ...]:
    """Return the globs of a project file's ``per-file-ignores``, each with its codes.

    Raises UsageError for an unknown code.
    """
    parsed: list[tuple[str, frozenset[str]]] = []
    for glob, codes in ignores.items():
        texts = codes if isinstance(codes, list) else [codes]
        parsed.append((glob, parse_codes(texts, f"per-file-ignores {glob!r}")))
    return tuple(parsed)
