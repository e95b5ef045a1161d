"""The processor's cores, and the share of them that a process takes beside others."""

from __future__ import annotations

import os

#: The environment variable with the number of cores; worker processes inherit it.
CORES_VARIABLE = "QDQ_CORES"


def count_cores() -> int:
    """Return the number of cores to use: that in QDQ_CORES, else all of the machine."""
    return read_core_limit() or os.cpu_count() or 1


def read_core_limit() -> int | None:
    """Return the number in QDQ_CORES; None where it is no number above 0."""
    text = os.environ.get(CORES_VARIABLE, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None
