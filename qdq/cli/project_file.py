"""The project file: defaults of a repository for the options of every command.

It is ``qdq.yaml``, or the table ``[tool.qdq]`` in ``pyproject.toml``, in the current folder or the
nearest one above it, up to the root of the repository.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from qdq.errors import QdqError, UsageError
from qdq.files.command_files import note_input

if TYPE_CHECKING:
    from qdq.files.strict_yaml import LocatedMapping

YAML_FILE, TOML_FILE = "qdq.yaml", "pyproject.toml"

_TABLE_HEADING = re.compile(r"\s*\[\s*tool\s*\.\s*qdq\b")


class Project(msgspec.Struct, frozen=True):
    """A project file and the defaults that it gives to commands."""

    path: Path
    #: The keys it holds.
    keys: tuple[str, ...]
    #: Option name to value. Paths are absolute or relative to the current folder.
    options: dict[str, Any]

    @property
    def leave_float(self) -> Sequence[str] | None:
        """Globs of node names to keep in float; None where the file has none."""
        globs: Sequence[str] | None = self.options.get("leave_float")
        return globs

    @property
    def per_file_ignores(self) -> tuple[tuple[str, frozenset[str]], ...]:
        """Globs of paths below the project's folder, and the codes that are ignored in each."""
        return tuple(self.options.get("per_file_ignores", ()))

    def list_used_keys(self, option_names: set[str | None]) -> list[str]:
        """Return the keys that give a default to one of these options."""
        from qdq.cli.project_values import PROJECT_KEYS, TABLES

        used = []
        for key in self.keys:
            keys = TABLES[key].values() if key in TABLES else [PROJECT_KEYS[key]]
            if any(entry.option in option_names for entry in keys):
                used.append(key)
        return used


def find_project(folder: Path) -> Project | None:
    """Return the project whose file is nearest above a folder, or None.

    The search ends at a folder that holds ``.git``. Raises UsageError, naming file and line, for
    unknown keys and values of the wrong kind.
    """
    for candidate in (folder, *folder.parents):
        yaml_path, toml_path = candidate / YAML_FILE, candidate / TOML_FILE
        toml_table = _read_toml(toml_path)
        if yaml_path.is_file():
            if toml_table is not None:
                raise UsageError(
                    f"{yaml_path}: {TOML_FILE} beside it has a [tool.qdq] too. Keep one of them."
                )
            return _make_project(yaml_path, _read_yaml(yaml_path))
        if toml_table is not None:
            return _make_project(toml_path, toml_table)
        if (candidate / ".git").exists():
            return None
    return None


def _make_project(path: Path, content: LocatedMapping) -> Project:
    from qdq.cli.project_options import read_options  # most folders have no project file

    return Project(path, tuple(content), read_options(path, content))


def _read_yaml(path: Path) -> LocatedMapping:
    from qdq.cli.project_values import TOP_KEYS
    from qdq.files.strict_yaml import LocatedMapping, read_yaml

    try:
        content = read_yaml(path)
    except QdqError as error:
        raise UsageError(str(error)) from error
    if not isinstance(content, LocatedMapping):
        raise UsageError(
            f"{path}:1: a project file is a mapping. Write some of {', '.join(TOP_KEYS)}."
        )
    return content


def _read_toml(path: Path) -> LocatedMapping | None:
    """Return the table [tool.qdq] with the lines of its keys; None without the file or table."""
    if not path.is_file():
        return None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    note_input(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"{path}: the file cannot be read: {error.strerror}. "
            "Fix it, or skip it with 'qdq --no-project COMMAND ...'."
        ) from error
    try:
        tool = tomllib.loads(text).get("tool", {})
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if "[tool.qdq" not in text:
            return None
        raise UsageError(f"{path}: the file is not valid TOML: {error}.") from error
    if not isinstance(tool, dict) or tool.get("qdq") is None:
        return None
    table = tool["qdq"]
    if not isinstance(table, dict):  # `qdq = 3`: an unknown key of that name
        table = {"qdq": table}
    return _locate_keys(table, text.splitlines())


def _locate_keys(table: dict[str, Any], lines: Sequence[str]) -> LocatedMapping:
    """Return a TOML table with the lines of its keys, as far as they can be found."""
    from qdq.files.strict_yaml import LocatedMapping

    located = LocatedMapping()
    start = _find_line(lines, _TABLE_HEADING) or 1
    for key, value in table.items():
        pattern = re.compile(
            rf"""(\s*\[\s*tool\s*\.\s*qdq\s*\.\s*|.*[\s.{{,]|){re.escape(key)}["']?\s*[\].=]"""
        )
        located[key] = _locate_keys(value, lines) if isinstance(value, dict) else value
        located.lines[key] = _find_line(lines, pattern, start) or start
    return located


def _find_line(lines: Sequence[str], pattern: re.Pattern[str], start: int = 1) -> int | None:
    """Return the number of the first line, from `start` on, that begins with a pattern."""
    for number, line in enumerate(lines[start - 1 :], start):
        if pattern.match(line):
            return number
    return None
