"""Preprocessing of pictures: shipped presets and YAML files, read strictly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from qdq.errors import DataError, RuleError, did_you_mean
from qdq.files.strict_yaml import (
    LocatedMapping,
    read_choice,
    read_text,
    read_yaml,
    require_known_keys,
)

#: Channels of each order of colours.
CHANNEL_COUNTS = {"rgb": 3, "bgr": 3, "gray": 1}
LAYOUTS = ("nchw", "nhwc")

_PRESETS = Path(__file__).parent / "presets"
_FITS = ("crop", "letterbox", "stretch")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

#: Interpolations of Pillow's transform, which does not smooth; the others always do.
_UNSMOOTHED = ("nearest", "bilinear", "bicubic")
_BRIGHTEST = 255
_HEIGHT_AND_WIDTH = 2


class Preprocess(msgspec.Struct, frozen=True):
    """How a picture becomes an input: fitted to its size, then scaled.

    The values are ``(pixels * scale - mean) / std``.
    """

    fit: str
    #: Height and width, where the model does not fix them.
    size: tuple[int, int] | None = None
    #: For `crop`: the short side before the middle is cut out, for pictures of `size`.
    resize: int | None = None
    interpolation: str = "bilinear"
    #: Whether shrinking smooths, as in Pillow; OpenCV does not.
    antialias: bool = True
    #: For `letterbox`: the colour of the frame, one number for each channel, before scaling.
    fill: tuple[float, ...] = (0.0,)
    channels: str = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    #: The order of axes, where the model does not determine it.
    layout: str | None = None
    #: The input to feed, where the model does not determine it.
    input: str | None = None


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def preprocess_path(name: str | Path) -> Path:
    """Return the file of a shipped preset, or a user's; raises DataError where there is none."""
    presets = preset_names()
    if str(name) in presets:
        return _PRESETS / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    hint = did_you_mean(str(name), presets)
    raise DataError(
        f"--preprocess {str(name)!r}: there is no such file or preset{hint} "
        f"Presets are {', '.join(presets)}."
    )


def read_preprocess(name: str | Path) -> Preprocess:
    """Return the preprocessing of a preset or file.

    Raises DataError with file and line for unknown keys and values of the wrong kind.
    """
    path = preprocess_path(name)
    try:
        content = read_yaml(path)
    except RuleError as error:
        raise DataError(str(error)) from error
    try:
        return msgspec.convert(_read_values(content), Preprocess)
    except RuleError as error:
        raise DataError(f"{path}:{error}") from error


def _read_values(content: Any) -> dict[str, Any]:
    keys = ("like", *_READERS)
    if not isinstance(content, LocatedMapping):
        raise RuleError(f"1: a preprocess file is a mapping. Write some of {', '.join(keys)}.")
    require_known_keys(content, keys)
    values: dict[str, Any] = {}
    if "like" in content:
        preset = read_choice(content, "like", preset_names())
        values = _read_values(read_yaml(_PRESETS / f"{preset}.yaml"))
    for key, read in _READERS.items():
        if key in content:
            values[key] = read(content, key)
    if "fit" not in values:
        raise RuleError(
            f"{content.line}: the key 'fit' is missing. "
            f"Write one of {', '.join(_FITS)}, or 'like' and a preset."
        )
    _require_compatible_keys(content, values)
    return values


def _require_compatible_keys(content: LocatedMapping, values: dict[str, Any]) -> None:
    """Raise RuleError for keys that have no effect, or no meaning, beside the others."""
    _require_fit_of_key(content, values, "resize", "crop")
    _require_fit_of_key(content, values, "fill", "letterbox")
    _require_resize_above_size(content, values)
    _require_smoothing_interpolation(content, values)
    if not all(0 <= colour <= _BRIGHTEST for colour in values.get("fill", ())):
        raise RuleError(
            f"{content.lines['fill']}: 'fill' is {content['fill']!r}. "
            f"Write colours from 0 to {_BRIGHTEST}."
        )
    _require_channel_counts(content, values)


def _require_fit_of_key(
    content: LocatedMapping, values: dict[str, Any], key: str, fit: str
) -> None:
    if key in content and values["fit"] != fit:
        raise RuleError(f"{content.lines[key]}: {key!r} is only for 'fit: {fit}'. Remove it.")


def _require_resize_above_size(content: LocatedMapping, values: dict[str, Any]) -> None:
    if values["fit"] != "crop" or "resize" not in values:
        return
    if "size" not in values or values["resize"] < min(values["size"]):
        raise RuleError(
            f"{content.lines.get('resize', content.line)}: 'resize' is the short side before "
            "'size' is cut out. Write both, 'resize' the larger."
        )


def _require_smoothing_interpolation(content: LocatedMapping, values: dict[str, Any]) -> None:
    if values.get("antialias", True):
        return
    if values.get("interpolation", "bilinear") not in _UNSMOOTHED:
        raise RuleError(
            f"{content.lines.get('antialias', content.line)}: this interpolation always smooths. "
            f"Without 'antialias', write one of {', '.join(_UNSMOOTHED)}."
        )


def _require_channel_counts(content: LocatedMapping, values: dict[str, Any]) -> None:
    channels = CHANNEL_COUNTS[values.get("channels", "rgb")]
    for key in ("mean", "std", "fill"):
        count = len(values.get(key, ()))
        if count not in (0, 1, channels):
            raise RuleError(
                f"{content.lines.get(key, content.line)}: {key!r} has {count} numbers. "
                f"Write one, or one for each of {channels} channels."
            )


def _choice_reader(*known: str) -> Callable[[LocatedMapping, str], str]:
    return lambda content, key: read_choice(content, key, known)


def _read_number(content: LocatedMapping, key: str) -> float:
    return _parse_number(content, key, content[key])


def _parse_number(content: LocatedMapping, key: str, value: Any) -> float:
    """Return a number that is written as ``0.5`` or ``1/255``."""
    try:
        if isinstance(value, bool):
            raise ValueError
        numerator, _, denominator = str(value).partition("/")
        number = float(numerator) / float(denominator or 1)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, ZeroDivisionError) as error:
        raise RuleError(
            f"{content.lines[key]}: {key!r} is {value!r}. Write a number such as 0.5 or 1/255."
        ) from error
    return number


def _read_numbers(content: LocatedMapping, key: str) -> tuple[float, ...]:
    value = content[key]
    items = value if isinstance(value, list) else [value]
    numbers = tuple(_parse_number(content, key, item) for item in items)
    divides = key == "std"
    if not numbers or (divides and 0.0 in numbers):
        condition = ", none of them 0" if divides else ""
        raise RuleError(
            f"{content.lines[key]}: {key!r} is {value!r}. "
            f"Write a number for each channel{condition}."
        )
    return numbers


def _read_size(content: LocatedMapping, key: str) -> tuple[int, int]:
    value = content[key]
    sides = value if isinstance(value, list) else [value, value]
    are_pixels = all(type(side) is int and side > 0 for side in sides)
    if len(sides) != _HEIGHT_AND_WIDTH or not are_pixels:
        raise RuleError(
            f"{content.lines[key]}: {key!r} is {value!r}. "
            "Write pixels: one number, or [height, width]."
        )
    return sides[0], sides[1]


def _read_pixels(content: LocatedMapping, key: str) -> int:
    value = content[key]
    if type(value) is not int or value < 1:
        raise RuleError(f"{content.lines[key]}: {key!r} is {value!r}. Write a number of pixels.")
    return value


def _read_truth(content: LocatedMapping, key: str) -> bool:
    value = content[key]
    if not isinstance(value, bool):
        raise RuleError(f"{content.lines[key]}: {key!r} is {value!r}. Write true or false.")
    return value


#: How the value of each key of a preprocess file is read.
_READERS: dict[str, Callable[[LocatedMapping, str], Any]] = {
    "fit": _choice_reader(*_FITS),
    "size": _read_size,
    "resize": _read_pixels,
    "interpolation": _choice_reader(*_INTERPOLATIONS),
    "antialias": _read_truth,
    "fill": _read_numbers,
    "channels": _choice_reader(*CHANNEL_COUNTS),
    "scale": _read_number,
    "mean": _read_numbers,
    "std": _read_numbers,
    "layout": _choice_reader(*LAYOUTS),
    "input": read_text,
}
