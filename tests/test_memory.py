"""The memory that a process frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Frees a block of 100 MB and prints how many MB the process then has.
SCRIPT = """
import psutil
from qdq.memory import keep_freed_memory
{call}
block = b"x" * 100_000_000
del block
print(psutil.Process().memory_info().rss // 1_000_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_kept() -> None:
    megabytes = {}
    for call in ("", "keep_freed_memory()"):
        command = [sys.executable, "-c", SCRIPT.format(call=call)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        megabytes[call] = int(done.stdout)

    assert megabytes[""] < 100 <= megabytes["keep_freed_memory()"]
