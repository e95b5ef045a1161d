"""Which findings a user wants to see: by code or severity, by file, and not those that a baseline holds."""

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
    """Return the codes that some texts name: codes and severities, several in one text behind commas.

    Raises UsageError, which begins with `option`, for a word that is neither.
    """
    codes: set[str] = set()
    for word in (word.strip() for text in texts for word in text.split(",")):
        if word in SEVERITIES:
            codes.update(code for code, problem in PROBLEMS.items() if problem.severity == word)
        elif word in PROBLEMS:
            codes.add(word)
        else:
            raise UsageError(
                f"{option}: no code {word!r}{did_you_mean(word, (*PROBLEMS, *SEVERITIES))}; 'qdq check --codes' lists them"
            )
    return frozenset(codes)


class Selection(msgspec.Struct, frozen=True):
    """The codes that are reported, of all files and of those that a glob names."""

    select: frozenset[str]
    ignore: frozenset[str] = frozenset()
    #: Glob of paths below `folder` -> codes that are ignored in them.
    per_file: tuple[tuple[str, frozenset[str]], ...] = ()
    folder: Path | None = None

    def of(self, path: Path, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Return the findings in one file that are reported."""
        relative = relative_posix_path(path, self.folder or Path())
        ignored = self.ignore.union(
            *(codes for glob, codes in self.per_file if fnmatchcase(relative, glob))
        )
        return tuple(f for f in findings if f.code in self.select and f.code not in ignored)


def relative_posix_path(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder, with forward slashes; an absolute one where no relative one leads there."""
    try:
        return PurePosixPath(Path(os.path.relpath(path, folder)).as_posix()).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


def fingerprint(finding: Finding) -> str:
    """Return what stays the same about a finding while the model around it changes: its code and where it is."""
    return hashlib.sha256(f"{finding.code}\n{finding.where}".encode()).hexdigest()[:32]


def parse_per_file_ignores(given: Mapping[str, Any]) -> tuple[tuple[str, frozenset[str]], ...]:
    """Return the globs of a project file's ``per-file-ignores`` with the codes of each; raises UsageError for an unknown code."""
    return tuple(
        (
            glob,
            parse_codes(
                codes if isinstance(codes, list) else [codes], f"per-file-ignores {glob!r}"
            ),
        )
        for glob, codes in given.items()
    )
