"""The memory of the machine."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

_MEGABYTE = 1_000_000
GIGABYTE = 1_000_000_000

#: The files of a container's memory limit in bytes, or "max" (Linux control groups, 2 and 1).
_LIMIT_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


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
