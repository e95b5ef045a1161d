"""Output files, written completely or not at all, and only where the user allows it.

A file that exists is replaced by another one with its permissions. Through a symbolic link, the
file behind it is replaced. Other names of the file (hard links) keep the old content.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from qdq.errors import UsageError
from qdq.files.command_files import begin_output, note_output
from qdq.files.temporary import fill_file, remove_stale_files, temporary_file
from qdq.interruption import DelayedEnd

#: Permissions of a new file before the umask applies.
_FILE_MODE = 0o666

#: The permissions that a file keeps when it is replaced.
_KEPT_MODE = 0o777


def check_output(path: Path, force: bool = False, role: str = "") -> None:
    """Raise UsageError unless a command may write `path`.

    It must be neither an input nor another output of the command, must be in a writable folder,
    and must not exist without `force`. `role` is the option that names it, for messages.
    """
    note_output(path, role)
    check_place(path, force)


def check_place(path: Path, force: bool = False) -> None:
    """Raise UsageError unless a file can be written at `path`.

    It must be in a writable folder, and must not exist without `force`.
    """
    exists = _exists(path)
    if path.is_dir():
        raise UsageError(f"{path}: the output is a folder. Pass a file.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: the output is not a regular file. Pass another one.")
    if exists and not force:
        raise UsageError(f"{path}: the file exists. Pass --force to replace it.")
    _check_folder(path)


def check_in_place(path: Path) -> None:
    """Raise UsageError unless the file at `path` can be changed in place.

    A new file replaces it, so it must have no other name that would keep the old content.
    """
    note_output(path, "--fix", rewritable=True, in_place=True)
    check_place(path, force=True)
    if path.stat().st_nlink > 1:
        raise UsageError(
            f"{path}: the file has other names (hard links), which would keep the old content. "
            "Replace it by a copy of its own first."
        )
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path}: the file is read-only. Change its permissions first.")


def _exists(path: Path) -> bool:
    """Whether there is anything at `path`, including a broken link."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        reason = error.strerror
        raise UsageError(
            f"{path}: the file cannot be written: {reason}. Pass another name."
        ) from error
    return True


def _check_folder(path: Path) -> None:
    """Raise UsageError unless the folder of a file exists and is writable."""
    folder = resolve_link(path).parent
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{path}: {folder} is a file, not a folder. Pass a folder.")
    if not folder.is_dir():
        raise UsageError(f"{path}: the folder {folder} does not exist. Create it first.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the folder {folder} is not writable. Pass another folder.")


def resolve_link(path: Path) -> Path:
    """Return the path that a symbolic link leads to, which may not exist, or the path itself.

    Raises UsageError for a link that leads to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise UsageError(f"{path}: the link leads to itself. Remove it.")
    return target


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`, so that a reader gets all of it or none.

    Raises UsageError where the system refuses.
    """
    with atomic_file(path) as temporary:
        fill_file(temporary, (content,))


def copy_atomic(source: Path, path: Path) -> None:
    """Copy the file `source` to `path`, so that a reader gets all of it or none.

    Raises UsageError where the system refuses.
    """
    with atomic_file(path, parents=True) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def atomic_file(path: Path, parents: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at the end, or at that of `written_together`.

    It is removed where an error occurs before. Raises UsageError where the system refuses.
    """
    begin_output(path)
    with written_together(), _system_errors(path):
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        group = _current_group.get()
        assert group is not None
        target = resolve_link(path)
        temporary = group.enter_context(temporary_file(target))
        yield temporary
        _set_permissions(temporary, target)
        group.outputs.append((path, temporary, target))


class _OutputGroup(ExitStack):
    """Temporary files, and the outputs that those of them replace which are complete."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[Path, Path, Path]] = []

    def place(self) -> None:
        """Replace the outputs, all before a signal ends the process."""
        with DelayedEnd():
            for path, temporary, target in self.outputs:
                with _system_errors(path):
                    temporary.replace(target)


_current_group: ContextVar[_OutputGroup | None] = ContextVar("output_group", default=None)


@contextmanager
def written_together() -> Iterator[None]:
    """Place the files that are written inside together at the end, or none of them on an error."""
    if _current_group.get() is not None:
        yield
        return
    with _OutputGroup() as group:
        token = _current_group.set(group)
        try:
            yield
        finally:
            _current_group.reset(token)
        group.place()


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Raise UsageError, for the output `path`, where the system refuses."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"{path}: the file could not be written: {reason}. Pass another path."
        ) from error


def _set_permissions(temporary: Path, target: Path) -> None:
    """Give a new file the owner and the permissions of the file that it replaces, if any."""
    try:
        status = target.stat()
    except FileNotFoundError:
        temporary.chmod(_FILE_MODE & ~_read_umask())
        return
    _set_owner(temporary, status)
    temporary.chmod(status.st_mode & _KEPT_MODE)


def _set_owner(temporary: Path, status: os.stat_result) -> None:
    """Give a file an owner and a group, as far as the system allows this user."""
    if not hasattr(os, "chown"):  # Windows
        return
    with contextlib.suppress(OSError):
        os.chown(temporary, -1, status.st_gid)
        os.chown(temporary, status.st_uid, -1)


def remove_output(path: Path) -> None:
    """Remove a file, if it exists, and what killed processes left while writing it."""
    path.unlink(missing_ok=True)
    remove_stale_files(path)


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
