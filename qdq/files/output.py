"""Writing files: whole or not at all, never over something the user did not name."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdq.errors import UsageError


def check_output(path: Path, inputs: tuple[Path, ...] = (), force: bool = False) -> None:
    """Raise UsageError unless `path` can be written: not an input, not existing (or `force`), in a writable folder."""
    exists = _exists(path)
    if any(_same(path, source) for source in inputs):
        raise UsageError(
            f"{path}: the output is the input; name another file, inputs are never changed"
        )
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no regular file; name another")
    if exists and not force:
        raise UsageError(f"{path}: exists; pass --force to replace it")
    _check_folder(path)


def _exists(path: Path) -> bool:
    """Whether there is anything at `path`, a link that leads nowhere included."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written: {error.strerror}; choose another name"
        ) from error
    return True


def _check_folder(path: Path) -> None:
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{path}: {folder} is a file, not a folder; choose a folder")
    if not folder.is_dir():
        raise UsageError(f"{path}: its folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: cannot write in {folder}; choose another folder")


def _same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other) or (
        path.exists() and other.exists() and path.samefile(other)
    )


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it, so that a reader sees all of it or none.

    Raises UsageError when the system refuses.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def copy_atomic(source: Path, path: Path) -> None:
    """Copy the file `source` to `path` so that `path` appears whole or not at all; raises UsageError when the system refuses."""
    with atomic_file(path, parents=True) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def atomic_file(path: Path, parents: bool = False) -> Iterator[Path]:
    """Give a temporary file beside `path` that takes its place at the end, or goes away where something fails before.

    Raises UsageError when the system refuses.
    """
    temporary = None
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UsageError(
            f"{path}: could not be written: {error.strerror or error}; choose another place"
        ) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    """Return how the names of a file's temporary ones begin, within what file systems take."""
    return f".qdq-{path.name[:64]}-"


def remove_output(path: Path) -> None:
    """Remove a file, where it is there, and what a process that was killed while writing it left beside it."""
    for file in (path, *path.parent.glob(f"{glob.escape(_prefix(path))}*")):
        file.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
