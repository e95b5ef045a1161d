"""Files: outputs that are complete or absent, and YAML that rejects unknown content."""

from __future__ import annotations

from qdq.files.output import atomic_file, check_output, write_atomic
from qdq.files.strict_yaml import read_yaml

__all__ = [
    "atomic_file",
    "check_output",
    "read_yaml",
    "write_atomic",
]
