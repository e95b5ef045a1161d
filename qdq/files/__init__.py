"""Files: outputs that appear whole or not at all, and YAML that refuses what it does not know."""

from __future__ import annotations

from qdq.files.output import atomic_file, check_output, write_atomic
from qdq.files.strict_yaml import read_yaml

__all__ = [
    "atomic_file",
    "check_output",
    "read_yaml",
    "write_atomic",
]
