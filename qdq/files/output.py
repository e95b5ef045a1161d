"""Output files, written completely or not at all, and only where the user allows it."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdq.errors import UsageError

#: Permissions of a new file before the umask applies.
_FILE_MODE = 0o666

#: Characters of a file's name that the names of its temporary files keep.
_PREFIX_LENGTH = 64


def check_output(path: Path, inputs: tuple[Path, ...] = (), force: bool = False) -> None:
    """Raise UsageError unless `path` can be written.

    It must not be an input, must be in a writable folder, and must not exist without `force`.
    """
    exists = _exists(path)
    if any(_is_same_file(path, source) for source in inputs):
        raise UsageError(
            f"{path}: the output is the input, and inputs are never changed. Pass another file."
        )
    if path.is_dir():
        raise UsageError(f"{path}: the output is a folder. Pass a file.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: the output is not a regular file. Pass another one.")
    if exists and not force:
        raise UsageError(f"{path}: the file exists. Pass --force to replace it.")
    _check_folder(path)


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
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{path}: {folder} is a file, not a folder. Pass a folder.")
    if not folder.is_dir():
        raise UsageError(f"{path}: the folder {folder} does not exist. Create it first.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the folder {folder} is not writable. Pass another folder.")


def _is_same_file(path: Path, other: Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    return path.exists() and other.exists() and path.samefile(other)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`, so that a reader gets all of it or none.

    Raises UsageError where the system refuses.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def copy_atomic(source: Path, path: Path) -> None:
    """Copy the file `source` to `path`, so that a reader gets all of it or none.

    Raises UsageError where the system refuses.
    """
    with atomic_file(path, parents=True) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def atomic_file(path: Path, parents: bool = False) -> Iterator[Path]:
    """Yield a temporary file next to `path` that replaces it at the end.

    It is removed where an error occurs before. Raises UsageError where the system refuses.
    """
    temporary = None
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_temporary_prefix(path))
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(_FILE_MODE & ~_read_umask())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"{path}: the file could not be written: {reason}. Pass another path."
        ) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    """Return the prefix of a file's temporary files, within the limits of file systems."""
    start = path.name[:_PREFIX_LENGTH]
    return f".qdq-{start}-"


def remove_output(path: Path) -> None:
    """Remove a file, if it exists, and temporary files of processes killed while writing it."""
    path.unlink(missing_ok=True)
    pattern = glob.escape(_temporary_prefix(path)) + "*"
    for temporary in path.parent.glob(pattern):
        temporary.unlink(missing_ok=True)


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
