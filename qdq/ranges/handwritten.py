"""Ranges written by hand in YAML or JSON: numbers for tensors, lists for weights' channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qdq.errors import DataError, RuleError, first_line
from qdq.files.strict_yaml import LocatedMapping, parse_text_yaml
from qdq.printable import encodable_name
from qdq.quantizer import INT4_LEVELS, INT8_LEVELS
from qdq.ranges.given_ranges import GivenRange
from qdq.ranges.given_weights import GivenWeightRange
from qdq.ranges.range_limits import LARGEST_AMAX, require_stated_range

#: The keys of a range: the quantity that its number is.
_AMAX = "amax"
_SCALE = "scale"
_QUANTITIES = (_AMAX, _SCALE)
_AXIS = "axis"
_BLOCK_SIZE = "block_size"


def parse_handwritten_ranges(
    content: bytes, path: Path
) -> tuple[tuple[GivenRange, ...], tuple[GivenWeightRange, ...]]:
    """Return the ranges of tensors and those of weights in YAML or JSON.

    A weight with one range is among both. A tensor is mapped to its amax, to ``{amax: ...}`` or to
    ``{scale: ...}``. A weight is mapped to one of these with a list in it, and for several ranges
    their ``axis``, with a ``block_size`` for ranges of INT4 blocks. Raises DataError with the
    file and the line.
    """
    ranges: list[GivenRange] = []
    weights: list[GivenWeightRange] = []
    mapping = _parse_mapping(content, path)
    for tensor, value in mapping.items():
        line = mapping.lines[tensor]
        location = f"{path}:{line}: tensor {tensor!r}"
        quantity = _find_listed_quantity(value)
        if quantity is None:
            ranges.append(GivenRange(tensor, _parse_range(value, location), line))
            continue
        block_size = _parse_block_size(value, location)
        axis = _parse_axis(value, quantity, location)
        largest = INT4_LEVELS if block_size else INT8_LEVELS
        amax = tuple(_parse_amax(quantity, text, location, largest) for text in value[quantity])
        weights.append(GivenWeightRange(tensor, axis, amax, line, block_size))
        if len(amax) == 1 and axis is None:
            ranges.append(GivenRange(tensor, amax[0], line))
    return tuple(ranges), tuple(weights)


def _find_listed_quantity(value: Any) -> str | None:
    """Return the quantity that a value maps to a list, None where there is no list."""
    if not isinstance(value, LocatedMapping):
        return None
    for quantity in _QUANTITIES:
        if isinstance(value.get(quantity), list):
            return quantity
    return None


def _parse_range(value: Any, location: str) -> float:
    """Return the one range that a value states."""
    if isinstance(value, str):
        return _parse_amax(_AMAX, value, location)
    if isinstance(value, LocatedMapping) and len(value) == 1:
        quantity, text = next(iter(value.items()))
        if quantity in _QUANTITIES:
            return _parse_amax(quantity, text, location)
    raise DataError(
        f"{location}: the value is not a range. "
        "Write a number, its amax, or one of {amax: ...} and {scale: ...}."
    )


def _parse_block_size(value: LocatedMapping, location: str) -> int:
    """Return how many values share a range of a weight, 0 where all of a channel do."""
    text = value.get(_BLOCK_SIZE)
    if text is None:
        return 0
    if not str(text).isdecimal() or int(text) == 0 or _AXIS not in value:
        raise DataError(
            f"{location}: {_BLOCK_SIZE} {text!r} is not a number from 1 on beside an axis. "
            f"Write both as in {{axis: 0, {_BLOCK_SIZE}: 128, amax: [...]}}."
        )
    return int(text)


def _parse_axis(value: LocatedMapping, quantity: str, location: str) -> int | None:
    """Return the axis of a weight's ranges, None for one range."""
    if set(value) - {quantity, _AXIS, _BLOCK_SIZE} or not value[quantity]:
        raise DataError(
            f"{location}: the value is not the ranges of a weight. "
            "Write a list of numbers as amax or scale, and for several numbers their axis."
        )
    axis = value.get(_AXIS)
    if axis is None:
        count = len(value[quantity])
        if count > 1:
            raise DataError(
                f"{location}: {count} ranges need their axis. "
                f"Add it as in {{axis: 0, {quantity}: [...]}}."
            )
        return None
    if not str(axis).isdecimal():
        raise DataError(
            f"{location}: axis {axis!r} is not a number from 0 on. "
            "Write the position of the weight's axis, counted from the front."
        )
    return int(axis)


def _parse_amax(quantity: str, text: Any, location: str, largest: int = INT8_LEVELS) -> float:
    """Return the amax of a number that is an amax or a scale of a type with a largest value."""
    number = _parse_number(text, location)
    if quantity == _AMAX:
        amax = number
    elif abs(number) * largest > LARGEST_AMAX:
        raise DataError(
            f"{location}: the scale {text} is larger than a float32. Write amax / {largest}."
        )
    else:
        scale = float(np.float32(number)) or number
        amax = scale * largest
    require_stated_range(amax, location)
    return amax


def _parse_number(text: Any, location: str) -> float:
    try:
        return float(text.replace("_", "?"))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{location}: {text!r} is not a number. Write one, such as 2.5.") from error


def _parse_mapping(content: bytes, path: Path) -> LocatedMapping:
    """Return a file's mapping of tensors; raises DataError where it is none."""
    try:
        mapping = _parse_text(content)
    except RuleError as error:
        raise DataError(f"{path}:{error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(
            f"{path}:{line}: the file is neither a calibration cache nor YAML: {error.problem}. "
            "Write lines of the form 'tensor: amax', with names in quotes."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        cause = first_line(error).rstrip(".")
        raise DataError(
            f"{path}: the file is neither a calibration cache nor YAML: {cause}. "
            "Write lines of the form 'tensor: amax'."
        ) from error
    if not isinstance(mapping, LocatedMapping) or not mapping:
        raise DataError(
            f"{path}:1: the file maps no tensor to a range. "
            "Write lines of the form 'tensor: amax' or 'tensor: {scale: ...}'."
        )
    return mapping


def _parse_text(content: bytes) -> Any:
    """Return the content of YAML or JSON with its lines.

    JSON is parsed separately: its names may hold characters that YAML reads otherwise, such as line
    breaks.
    """
    if content.lstrip().startswith(b"{"):
        try:
            return _parse_json(content.decode())
        except json.JSONDecodeError:
            pass  # a YAML mapping in braces
    return parse_text_yaml(content)


def _parse_json(text: str) -> Any:
    return json.loads(
        text,
        object_pairs_hook=_JsonLines(text).locate,
        parse_float=str,
        parse_int=str,
        parse_constant=str,
    )


class _JsonLines:
    """The lines of the keys of a JSON text.

    The parser passes the keys in order, those of an inner object before those of the outer one.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def locate(self, pairs: list[tuple[str, Any]]) -> LocatedMapping:
        """Return an object as a mapping with lines; raises RuleError for a repeated key."""
        mapping = LocatedMapping()
        start = 0
        for key, value in pairs:
            position = self._text.find(json.dumps(key, ensure_ascii=False), start)
            start = max(position, start)
            line = self._text.count("\n", 0, start) + 1
            if encodable_name(key) != key:
                raise RuleError(f"{line}: a key holds half of a surrogate pair. Correct its name.")
            if key in mapping:
                raise RuleError(f"{line}: the key {key!r} is given twice. Remove one.")
            mapping[key] = value
            mapping.lines[key] = line
            if position >= 0:
                start += 1
        return mapping
