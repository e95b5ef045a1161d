"""The memory of the machine."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

_MEGABYTE = 1_000_000

GIGABYTE = 1_000_000_000

#: Bytes that fit into the memory of every machine, so that psutil need not be imported to ask.
_SMALL = 16 * _MEGABYTE

#: The files of a container's memory limit in bytes, or "max" (Linux control groups, 2 and 1).
_LIMIT_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


#: Options of mallopt(3): the size from which a block is mapped alone, the free memory at the end of
#: the heap that is given back, and the number of arenas.
_MALLOC_OPTIONS = ((-3, 1 << 30), (-1, (1 << 31) - 1), (-8, 1))


@cache
def total_memory() -> int:
    """Return the bytes that a process can take at most: of memory and swap, or of a container."""
    import psutil

    total: int = psutil.virtual_memory().total + psutil.swap_memory().total
    limits = [total]
    for file in _LIMIT_FILES:
        try:
            text = file.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def exceeds_memory(size: int) -> bool:
    """Whether as many bytes are more than a process can take."""
    return size > _SMALL and size > total_memory()


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next large blocks.

    By default glibc gives it back, and the system clears each page again that a new block touches:
    a seventh of the time of `qdq quantize` of a model of 100 MB. One arena, so that blocks that a
    thread frees serve the others. Does nothing with another C library.
    """
    if os.name == "nt":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    for option, value in _MALLOC_OPTIONS:
        library.mallopt(option, value)


def format_gigabytes(size: int) -> str:
    """Return a number of bytes for a message."""
    return f"{size / GIGABYTE:.3g} GB"


def read_peak_memory() -> int:
    """Return the peak memory of this process in MB; 0 where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // _MEGABYTE
