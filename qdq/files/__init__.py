"""Files: outputs that appear whole or not at all, and YAML that refuses what it does not know."""

from __future__ import annotations

from qdq.files.output import check_output, whole, write_whole
from qdq.files.strict_yaml import read_yaml

__all__ = [
    "check_output",
    "read_yaml",
    "whole",
    "write_whole",
]
