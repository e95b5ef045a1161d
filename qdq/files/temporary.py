"""Temporary files and folders, which are removed also after the process was killed.

Their names hold the machine and the process that they belong to. Those of a process that is gone
are removed by the next one that makes others for the same purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from qdq.interruption import clean_before_end

#: Bytes of a file's name that the names of its temporary files keep.
_PREFIX_BYTES = 128

#: The part of a name after its prefix: machine, process and a random part.
_OWNER = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}")

#: The same part in the names of earlier versions, which hold no process.
_NO_OWNER = re.compile(r"[a-z0-9_]{8}")

#: Seconds without a change after which a temporary file of another machine is left behind.
_ABANDONED = 24 * 3600

#: The prefix of working folders.
_WORK_PREFIX = "qdq-work-"

#: Temporary files and folders of this process, from before they exist until they are gone.
_live: set[Path] = set()


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a new empty file in the folder of `path`, and remove it at the end if it is left.

    Only this user may read it. Those that killed processes left for the same `path` are removed.
    """
    remove_stale_files(path)
    temporary = path.with_name(_file_prefix(path) + _name_owner())
    _live.add(temporary)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _live.discard(temporary)


def fill_file(temporary: Path, content: Iterable[bytes]) -> None:
    """Write the content of a temporary file that exists, piece by piece.

    A thread that begins to write while a signal ends the process does not create it again.
    """
    with temporary.open("r+b") as file:
        for piece in content:
            file.write(piece)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a new folder for files that are not kept, and remove it with its content at the end.

    Folders that killed processes left are removed.
    """
    parent = Path(tempfile.gettempdir())
    _remove_stale_folders(parent)
    folder = parent / (_WORK_PREFIX + _name_owner())
    _live.add(folder)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _live.discard(folder)


def remove_stale_files(path: Path) -> None:
    """Remove the temporary files that killed processes left for `path`."""
    prefix = _file_prefix(path)
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(prefix) and _is_stale(path.with_name(name), prefix):
                path.with_name(name).unlink(missing_ok=True)


def remove_live() -> None:
    """Remove all temporary files and folders of this process, which is about to end."""
    for path in tuple(_live):
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


clean_before_end(remove_live)


def _remove_stale_folders(parent: Path) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            folder = parent / name
            if name.startswith(_WORK_PREFIX) and _is_stale(folder, _WORK_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)


def _file_prefix(path: Path) -> str:
    """Return the prefix of a file's temporary files, within the limits of file systems."""
    name = path.name
    while len(os.fsencode(name)) > _PREFIX_BYTES:
        name = name[:-1]
    return f".qdq-{name}-"


def _name_owner() -> str:
    """Return the part of a name that tells which process of which machine it belongs to."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


@cache
def _machine() -> str:
    """Return 8 characters that identify this machine since its start, or this container.

    Within them, a number of a process means the same process everywhere.
    """
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # these exist on Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


def _is_stale(path: Path, prefix: str) -> bool:
    """Whether a temporary file or folder belongs to a process that is gone."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return False
    ending = path.name.removeprefix(prefix)
    owner = _OWNER.fullmatch(ending)
    if owner is None:
        return _NO_OWNER.fullmatch(ending) is not None and stat.S_ISREG(status.st_mode)
    if owner["machine"] != _machine():
        return time.time() - status.st_mtime > _ABANDONED
    return not _is_running(int(owner["process"]))


def _is_running(process: int) -> bool:
    """Whether a process of this machine exists; assumed where that cannot be asked."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether a process has ended and waits for its parent to notice, which some never do."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    state = status.rpartition(")")[2].split()
    return state[:1] == ["Z"]
