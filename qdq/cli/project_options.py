"""The defaults in a project file: each key read and checked, with its line in errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.cli.project_values import PROJECT_KEYS, TABLES, TOP_KEYS, Key
from qdq.errors import QdqError, UsageError, did_you_mean
from qdq.files.strict_yaml import LocatedMapping


def read_options(path: Path, content: LocatedMapping) -> dict[str, Any]:
    """Return the defaults that the content of a project file gives, by option name.

    Raises UsageError, naming file and line, for unknown keys and values of the wrong kind.
    """
    options: dict[str, Any] = {}
    for key, value in content.items():
        location = f"{path}:{content.lines[key]}"
        if key in TABLES:
            options |= _read_table(path, location, key, value)
        elif key in PROJECT_KEYS:
            options[PROJECT_KEYS[key].option] = _read_value(
                path, location, key, PROJECT_KEYS[key], value
            )
        else:
            raise _unknown_key(f"{location}: unknown key {key!r}", key, TOP_KEYS)
    if "data" in content and "images" in content:
        line = content.lines["images"]
        raise UsageError(
            f"{path}:{line}: 'data' and 'images' exclude each other. Keep one of them."
        )
    return options


def _read_table(path: Path, location: str, table: str, content: Any) -> dict[str, Any]:
    """Return the options that a table gives."""
    keys = TABLES[table]
    if not isinstance(content, LocatedMapping):
        raise UsageError(f"{location}: {table!r} is {content!r}. Write some of {', '.join(keys)}.")
    options: dict[str, Any] = {}
    for key, value in content.items():
        key_location = f"{path}:{content.lines[key]}"
        if key not in keys:
            raise _unknown_key(f"{key_location}: unknown key {key!r} of {table!r}", key, keys)
        options[keys[key].option] = _read_value(path, key_location, key, keys[key], value)
    return options


def _read_value(path: Path, location: str, name: str, key: Key, value: Any) -> Any:
    """Return the default that a key gives; raises UsageError with file and line."""
    try:
        return key.read(path.parent, value)
    except QdqError as error:
        raise UsageError(f"{location}: {name!r}: {error}") from error


def _unknown_key(fact: str, key: str, known: Sequence[str] | Mapping[str, Key]) -> UsageError:
    hint = did_you_mean(key, known)
    return UsageError(f"{fact}{hint} Known keys are {', '.join(known)}.")
