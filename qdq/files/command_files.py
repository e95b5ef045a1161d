"""The files that a command reads and writes: no output replaces an input or another output.

Every reader in qdq calls `note_input`. Every output goes through `qdq/files/output.py`, which calls
`note_output` and `begin_output`. In library calls, which are no command, these do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from qdq.errors import UsageError

#: Device and inode: the identity of a file under all of its names.
_FileId = tuple[int, int]


class _Output(msgspec.Struct):
    """A file that a command writes."""

    #: The path as it was passed.
    path: Path
    #: The option that names it, or the path.
    role: str
    #: Whether it is written several times.
    rewritable: bool
    #: Whether it replaces an input on purpose.
    in_place: bool
    is_written: bool = False

    def is_at(self, path: Path) -> bool:
        """Whether it is the file at a path, which may not exist yet."""
        identity, other = _identify(self.path), _identify(path)
        if identity is None and other is None:
            return os.path.realpath(self.path) == os.path.realpath(path)
        return identity == other


class CommandFiles:
    """The inputs and outputs of one command."""

    def __init__(self) -> None:
        self._inputs: dict[_FileId, Path] = {}
        self._outputs: list[_Output] = []

    def add_input(self, path: Path) -> None:
        """Add a file that is read; raises UsageError where it is an output too."""
        identity = _identify(path)
        if identity is None:
            return
        output = self._find_output(path)
        if output is not None and not output.in_place:
            raise _input_error(output.path)
        self._inputs[identity] = path

    def add_output(
        self, path: Path, role: str = "", rewritable: bool = False, in_place: bool = False
    ) -> None:
        """Add a file that will be written.

        Raises UsageError where it is an input, unless it is written `in_place`, and where it is
        another output. An output may be added again, by its path or its role.
        """
        if not in_place:
            self._require_no_input(path)
        output = self._find_output(path)
        if output is None:
            self._outputs.append(_Output(path, role or str(path), rewritable, in_place))
            return
        is_same_path = os.path.abspath(path) == os.path.abspath(output.path)
        if role == output.role or (not role and is_same_path):
            return
        raise UsageError(
            f"{path}: {output.role} and {role or path} are the same file. "
            "Pass another file for one of them."
        )

    def begin_output(self, path: Path) -> None:
        """Raise UsageError where a file that is about to be written is an input or was written."""
        output = self._find_output(path)
        if output is None:
            self.add_output(path)
            output = self._outputs[-1]
        if not output.in_place:
            self._require_no_input(path)
        if output.is_written and not output.rewritable:
            raise UsageError(
                f"{path}: two outputs are the same file. Pass another file for one of them."
            )
        output.is_written = True

    def _find_output(self, path: Path) -> _Output | None:
        for output in self._outputs:
            if output.is_at(path):
                return output
        return None

    def _require_no_input(self, path: Path) -> None:
        identity = _identify(path)
        source = self._inputs.get(identity) if identity else None
        # The inode of a file that is gone may have passed to another one.
        if source is not None and _identify(source) == identity:
            raise _input_error(path)


class _Current:
    """The files of the command that runs in this process."""

    files: CommandFiles | None = None


@contextmanager
def command_files() -> Iterator[CommandFiles]:
    """Yield the record of the files that a command reads and writes from here on."""
    outer = _Current.files
    files = CommandFiles()
    _Current.files = files
    try:
        yield files
    finally:
        _Current.files = outer


def note_input(path: Path) -> None:
    """Record that the current command reads a file.

    Raises UsageError where the command writes it too.
    """
    if _Current.files is not None:
        _Current.files.add_input(path)


def note_output(
    path: Path, role: str = "", rewritable: bool = False, in_place: bool = False
) -> None:
    """Record that the current command will write a file.

    Raises UsageError where the command reads it, or writes it as another output.
    """
    if _Current.files is not None:
        _Current.files.add_output(path, role, rewritable, in_place)


def begin_output(path: Path) -> None:
    """Record that the current command begins to write a file; raises as `note_output` does."""
    if _Current.files is not None:
        _Current.files.begin_output(path)


def _identify(path: Path) -> _FileId | None:
    """Return the identity of the file at a path, None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _input_error(path: Path) -> UsageError:
    return UsageError(
        f"{path}: the output is the input, and inputs are never changed. Pass another file."
    )
