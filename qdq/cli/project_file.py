"""The project file: what a repository fixes for every command, so that neither people nor hooks need options.

It is ``qdq.yaml``, or the table ``[tool.qdq]`` in ``pyproject.toml``, in the current folder or the
nearest one above it, up to the root of the repository.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from qdq.calibration.methods import parse_method
from qdq.checking.selection import parse_codes, parse_per_file_ignores
from qdq.data.feeds import NOISE
from qdq.data.preprocessing import preset_names
from qdq.errors import QdqError, UsageError, did_you_mean
from qdq.files.strict_yaml import LocatedMapping, read_yaml
from qdq.graph.shape_profiles import parse_profile
from qdq.rules.rule_files import rules_path
from qdq.rules.shipped import shipped_sets
from qdq.target import parse_target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


YAML_FILE, TOML_FILE = "qdq.yaml", "pyproject.toml"

#: Keys of the project file, with the name that the commands' options have for each.
_OPTIONS = {
    "rules": "rule_sets",
    "targets": "targets",
    "data": "data",
    "method": "method",
    "batch": "batch",
}
_OPTIONS |= {"images": "images", "preprocess": "preprocess", "samples": "samples", "seed": "seed"}
_OPTIONS |= {"leave_float": "leave_float", "allow_unmatched": "allow_unmatched", "shapes": "shapes"}

#: Keys of the table `check`, with the name of each option.
_CHECK = {
    "select": "select",
    "ignore": "ignore",
    "baseline": "baseline",
    "per-file-ignores": "per_file_ignores",
}
_THRESHOLDS = {"snr_db": "min_snr", "cosine": "min_cosine", "top1_agreement": "min_top1"}


class Project(msgspec.Struct, frozen=True):
    """A project file and the defaults that it gives to commands."""

    path: Path
    #: The keys it holds.
    keys: tuple[str, ...]
    #: Option name to value, paths made absolute or relative to the current folder.
    options: dict[str, Any]

    def options_of(self, key: str) -> tuple[str, ...]:
        """Return the names of the options that a key gives."""
        tables = {"thresholds": _THRESHOLDS, "check": _CHECK}
        return tuple(tables[key].values()) if key in tables else (_OPTIONS[key],)


def find_project(folder: Path) -> Project | None:
    """Return the project whose file is nearest above a folder, or None; the search ends at a folder that holds ``.git``.

    Raises UsageError, naming file and line, for unknown keys and values of the wrong kind.
    """
    for place in (folder, *folder.parents):
        table = _read_toml(place / TOML_FILE)
        if (place / YAML_FILE).is_file():
            if table is not None:
                raise UsageError(
                    f"{place / YAML_FILE}: {TOML_FILE} beside it has a [tool.qdq] too; keep one of them"
                )
            return _project(place / YAML_FILE, _read_yaml(place / YAML_FILE))
        if table is not None:
            return _project(place / TOML_FILE, table)
        if (place / ".git").exists():
            return None
    return None


def _read_yaml(path: Path) -> LocatedMapping:
    try:
        content = read_yaml(path)
    except QdqError as error:
        raise UsageError(str(error)) from error
    if not isinstance(content, LocatedMapping):
        raise UsageError(
            f"{path}:1: a project file is a mapping with some of {', '.join((*_OPTIONS, 'thresholds', 'check'))}"
        )
    return content


def _read_toml(path: Path) -> LocatedMapping | None:
    """Return the table [tool.qdq] with the lines of its keys, None where the file or table is missing."""
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror}; mend it, or pass --no-project: qdq --no-project COMMAND ..."
        ) from error
    try:
        tool = tomllib.loads(text).get("tool", {})
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if "[tool.qdq" not in text:
            return None
        raise UsageError(f"{path}: is not valid TOML: {error}") from error
    table = tool.get("qdq") if isinstance(tool, dict) else None
    return (
        None
        if table is None
        else _located(table if isinstance(table, dict) else {"qdq": table}, text)
    )


def _located(table: dict[str, Any], text: str) -> LocatedMapping:
    """Return a TOML table with the lines where its keys stand, as far as they can be found."""
    located, lines = LocatedMapping(), text.splitlines()
    start = next(
        (i for i, line in enumerate(lines) if re.match(r"\s*\[\s*tool\s*\.\s*qdq\b", line)), 0
    )
    for key, value in table.items():
        pattern = re.compile(
            rf"""(\s*\[\s*tool\s*\.\s*qdq\s*\.\s*|.*[\s.{{,]|){re.escape(key)}["']?\s*[\].=]"""
        )
        located[key] = _located(value, text) if isinstance(value, dict) else value
        located.lines[key] = next(
            (i + 1 for i, line in enumerate(lines) if i >= start and pattern.match(line)), start + 1
        )
    return located


def _project(path: Path, content: LocatedMapping) -> Project:
    options: dict[str, Any] = {}
    for key, value in content.items():
        at = f"{path}:{content.lines[key]}"
        if key == "thresholds":
            options |= _thresholds(path, at, value)
        elif key == "check":
            options |= _check(path, at, value)
        elif key in _OPTIONS:
            options[_OPTIONS[key]] = _read(path.parent, key, value, at)
        else:
            known = (*_OPTIONS, "thresholds", "check")
            raise UsageError(
                f"{at}: unknown key {key!r}{did_you_mean(key, known)}; known are {', '.join(known)}"
            )
    if "data" in content and "images" in content:
        raise UsageError(
            f"{path}:{content.lines['images']}: 'data' and 'images' exclude each other; keep one of them"
        )
    return Project(path, tuple(content), options)


def _read(folder: Path, key: str, value: Any, at: str) -> Any:
    try:
        return _READERS[key](folder, value)
    except QdqError as error:
        raise UsageError(f"{at}: {key!r}: {error}") from error


def _thresholds(path: Path, at: str, value: Any) -> dict[str, float]:
    if not isinstance(value, LocatedMapping):
        raise UsageError(
            f"{at}: 'thresholds' is {value!r}; write some of {', '.join(_THRESHOLDS)} with a number each"
        )
    options: dict[str, float] = {}
    for key, number in value.items():
        at = f"{path}:{value.lines[key]}"
        if key not in _THRESHOLDS:
            raise UsageError(
                f"{at}: unknown threshold {key!r}{did_you_mean(key, _THRESHOLDS)}; known are {', '.join(_THRESHOLDS)}"
            )
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UsageError(f"{at}: {key!r} is {number!r}; write a number")
        options[_THRESHOLDS[key]] = float(number)
    return options


def _check(path: Path, at: str, value: Any) -> dict[str, Any]:
    """Return the options that the table `check` gives; paths and globs are relative to the project's folder."""
    if not isinstance(value, LocatedMapping):
        raise UsageError(f"{at}: 'check' is {value!r}; write some of {', '.join(_CHECK)}")
    options: dict[str, Any] = {}
    for key, given in value.items():
        at = f"{path}:{value.lines[key]}"
        if key not in _CHECK:
            raise UsageError(
                f"{at}: unknown key {key!r} of 'check'{did_you_mean(key, _CHECK)}; known are {', '.join(_CHECK)}"
            )
        try:
            options[_CHECK[key]] = _check_value(path.parent, key, given)
        except QdqError as error:
            raise UsageError(f"{at}: {key!r}: {error}") from error
    return options


def _check_value(folder: Path, key: str, given: Any) -> Any:
    if key == "baseline":
        return _under(folder, _text(given))
    if key == "per-file-ignores":
        if not isinstance(given, dict):
            raise UsageError(
                f"is {given!r}; write a glob of paths and the codes to ignore in them, as 'legacy/*.onnx': [uint8]"
            )
        return parse_per_file_ignores({glob: _texts(codes) for glob, codes in given.items()})
    parse_codes(_texts(given), key)
    return _texts(given)


def _texts(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(text, str) and text for text in found):
        raise UsageError(f"is {value!r}; write a text or a list of texts")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"is {value!r}; write a text")
    return value


def _rules(folder: Path, value: Any) -> list[str]:
    names = [name if name in shipped_sets() else _under(folder, name) for name in _texts(value)]
    for name in names:
        rules_path(name)
    return names


def _targets(_: Path, value: Any) -> list[str]:
    return [str(parse_target(text)) for text in _texts(value)]


def _data(folder: Path, value: Any) -> str:
    text = _text(value)
    return text if text == NOISE else _under(folder, text)


def _preprocess(folder: Path, value: Any) -> str:
    text = _text(value)
    return text if text in preset_names() else _under(folder, text)


def _method(_: Path, value: Any) -> str:
    parse_method(_text(value))
    return str(value)


def _whole(least: int, what: str) -> Callable[[Path, Any], int]:
    def read(_: Path, value: Any) -> int:
        if type(value) is not int or value < least:
            raise UsageError(f"is {value!r}; write a whole number{what}, at least {least}")
        return value

    return read


def _shapes(_: Path, value: Any) -> list[str]:
    return [str(parse_profile(text)) for text in _texts(value)]


def _truth(_: Path, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"is {value!r}; write true or false")
    return value


def _under(folder: Path, text: str) -> str:
    """Return a path of the project file as seen from the current folder, the shorter way."""
    path, here = folder / text, Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


#: How each key's value is read: from the project's folder and what is written.
_READERS: dict[str, Callable[[Path, Any], Any]] = {
    "rules": _rules,
    "targets": _targets,
    "data": _data,
    "method": _method,
    "batch": _whole(1, " of samples"),
    "images": lambda folder, value: _under(folder, _text(value)),
    "preprocess": _preprocess,
    "samples": _whole(1, " of samples"),
    "seed": _whole(0, ""),
    "leave_float": lambda _, value: _texts(value),
    "shapes": _shapes,
    "allow_unmatched": _truth,
}
