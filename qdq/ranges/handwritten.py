"""Ranges written by hand, in YAML or JSON: a number for a tensor, a list for the channels of a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qdq.errors import DataError, RuleError, first_line
from qdq.files.strict_yaml import LocatedMapping, parse_text_yaml
from qdq.quantizer import INT8_LEVELS
from qdq.ranges.given_ranges import LARGEST_AMAX, GivenRange, GivenWeightRange, require_range

_AMAX, _SCALE = "amax", "scale"
_WAYS = (_AMAX, _SCALE)
_AXIS = "axis"


def parse_handwritten_ranges(
    content: bytes, path: Path
) -> tuple[tuple[GivenRange, ...], tuple[GivenWeightRange, ...]]:
    """Return the ranges of tensors and those of weights that YAML or JSON says; a weight with one range is among both.

    A tensor is mapped to its amax, to ``{amax: ...}`` or to ``{scale: ...}``; a weight to one of these with a list in it and, for several, the
    ``axis`` that they go along. Raises DataError with the file and the line.
    """
    ranges: list[GivenRange] = []
    weights: list[GivenWeightRange] = []
    found = _mapping(content, path)
    for tensor, value in found.items():
        line = found.lines[tensor]
        where = f"{path}:{line}: tensor {tensor!r}"
        if (way := _way_of_list(value)) is None:
            ranges.append(GivenRange(tensor, _one(value, where), line))
            continue
        weight = GivenWeightRange(
            tensor,
            _axis(value, way, where),
            tuple(_amax(way, each, where) for each in value[way]),
            line,
        )
        weights.append(weight)
        if len(weight.amax) == 1 and weight.axis is None:
            ranges.append(GivenRange(tensor, weight.amax[0], line))
    return tuple(ranges), tuple(weights)


def _way_of_list(value: Any) -> str | None:
    return next(
        (
            way
            for way in _WAYS
            if isinstance(value, LocatedMapping) and isinstance(value.get(way), list)
        ),
        None,
    )


def _one(value: Any, where: str) -> float:
    """Return the one range that a value says."""
    if isinstance(value, str):
        return _amax(_AMAX, value, where)
    if not isinstance(value, LocatedMapping) or len(value) != 1 or next(iter(value)) not in _WAYS:
        raise DataError(
            f"{where}: write a number, its amax, or one of {{amax: ...}} and {{scale: ...}}"
        )
    way, text = next(iter(value.items()))
    return _amax(way, text, where)


def _axis(value: LocatedMapping, way: str, where: str) -> int | None:
    """Return the axis that a weight's ranges go along, None for one range."""
    if set(value) - {way, _AXIS} or not value[way]:
        raise DataError(
            f"{where}: a weight has amax or scale, a list of numbers, and for several of them the axis that they go along"
        )
    axis = value.get(_AXIS)
    if axis is None and len(value[way]) > 1:
        raise DataError(
            f"{where}: {len(value[way])} ranges need the axis that they go along, as in {{axis: 0, {way}: [...]}}"
        )
    if axis is not None and not str(axis).isdecimal():
        raise DataError(
            f"{where}: axis {axis!r} is no number from 0 on; count the axes of the weight from the front"
        )
    return None if axis is None else int(axis)


def _amax(way: str, text: Any, where: str) -> float:
    number = _number(text, where)
    if way == _SCALE and abs(number) * INT8_LEVELS > LARGEST_AMAX:
        raise DataError(
            f"{where}: the scale {text} is larger than a float32; write amax / {INT8_LEVELS}"
        )
    amax = number if way == _AMAX else (float(np.float32(number)) or number) * INT8_LEVELS
    require_range(amax, where)
    return amax


def _number(text: Any, where: str) -> float:
    try:
        return float(text.replace("_", "?"))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{where}: {text!r} is no number; write one, such as 2.5") from error


def _mapping(content: bytes, path: Path) -> LocatedMapping:
    try:
        found = _parsed(content)
    except RuleError as error:
        raise DataError(f"{path}:{error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(
            f"{path}:{line}: neither a calibration cache nor YAML: {error.problem}; a line is 'tensor: amax', with names in quotes"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: neither a calibration cache nor YAML: {first_line(error)}; a line is 'tensor: amax'"
        ) from error
    if not isinstance(found, LocatedMapping) or not found:
        raise DataError(
            f"{path}:1: maps no tensor to a range; a line is 'tensor: amax', or 'tensor: {{scale: ...}}'"
        )
    return found


def _parsed(content: bytes) -> Any:
    """Return what YAML or JSON says with its lines; in JSON, names may hold what YAML reads otherwise, such as its line breaks."""
    if content.lstrip().startswith(b"{"):
        try:
            text = content.decode()
            return json.loads(
                text,
                object_pairs_hook=_Lines(text).located,
                parse_float=str,
                parse_int=str,
                parse_constant=str,
            )
        except json.JSONDecodeError:
            pass  # a YAML mapping in braces
    return parse_text_yaml(content)


class _Lines:
    """Where the keys of a JSON text stand; its parser gives them in order, those of an inner object before the one around it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def located(self, pairs: list[tuple[str, Any]]) -> LocatedMapping:
        """Return an object as a mapping with lines; raises RuleError for a key that is given twice."""
        mapping, start = LocatedMapping(), 0
        for key, value in pairs:
            found = self.text.find(json.dumps(key, ensure_ascii=False), start)
            start = max(found, start)
            line = self.text.count("\n", 0, start) + 1
            if key in mapping:
                raise RuleError(f"{line}: the key {key!r} is given twice; remove one")
            mapping[key], mapping.lines[key] = value, line
            start += found >= 0
        return mapping
