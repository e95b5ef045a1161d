"""Writing files: whole or not at all, never over something the user did not name."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from qdq.errors import UsageError


def check_output(path: Path, inputs: tuple[Path, ...] = (), force: bool = False) -> None:
    """Raise UsageError unless `path` can be written: not an input, not existing (or `force`), in a writable folder."""
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path}: the output is the input; name another file, inputs are never changed")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists; pass --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot write in {path.parent}; choose another folder")


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it, so that a reader sees all of it or none.

    Raises UsageError when the system refuses.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(f"{path}: cannot write here: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        raise UsageError(f"{path}: could not be written: {error.strerror}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def copy_whole(source: Path, path: Path) -> None:
    """Copy the file `source` to `path` so that `path` appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        shutil.copyfile(source, name)
        os.replace(name, path)
    except OSError as error:
        raise UsageError(f"{path}: could not be written: {error.strerror}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
