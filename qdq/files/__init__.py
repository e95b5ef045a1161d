"""Files: outputs that are complete or absent and replace no input, and YAML read strictly."""

from __future__ import annotations

from qdq.files.command_files import command_files, note_input
from qdq.files.output import atomic_file, check_output, write_atomic
from qdq.files.strict_yaml import read_yaml

__all__ = [
    "atomic_file",
    "check_output",
    "command_files",
    "note_input",
    "read_yaml",
    "write_atomic",
]
