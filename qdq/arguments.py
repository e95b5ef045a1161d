"""Arguments of the library's functions: what they are taken as, and errors about their types."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from qdq.errors import UsageError


def require_type(value: object, kind: type | tuple[type, ...], name: str, advice: str) -> None:
    """Raise UsageError for an argument of another type; the advice says what to pass."""
    if not isinstance(value, kind):
        raise wrong_type(value, name, advice)


def require_choice(value: object, choices: Sequence[str], name: str) -> None:
    """Raise UsageError for an argument that is none of some texts."""
    advice = f"one of {', '.join(choices)}"
    require_type(value, str, name, advice)
    if value not in choices:
        raise UsageError(f"{name}: the argument is {value!r}. Pass {advice}.")


def wrong_type(value: object, name: str, advice: str) -> UsageError:
    """Return the error for an argument of a type that cannot be taken."""
    return UsageError(f"{name}: the argument is of type {type(value).__name__}. Pass {advice}.")


def list_items(value: Any, single: type | tuple[type, ...], name: str, advice: str) -> list[Any]:
    """Return the items of an argument, which may be one alone, of a type in `single`.

    Raises UsageError for an argument that is neither one nor several.
    """
    if isinstance(value, single):
        return [value]
    if isinstance(value, (bytes, Mapping)):
        raise wrong_type(value, name, advice)
    try:
        return list(value)
    except TypeError as error:  # also of arrays without axes, which are iterable by their type
        raise wrong_type(value, name, advice) from error


def list_texts(value: object, name: str, advice: str) -> tuple[str, ...]:
    """Return the texts of an argument, which may be a single one; raises UsageError for others."""
    texts = list_items(value, str, name, advice)
    for text in texts:
        require_type(text, str, name, advice)
        _require_whole_text(text, name)
    return tuple(map(str, texts))  # of numpy's texts too


def _require_whole_text(text: str, name: str) -> None:
    """Raise UsageError for a text that no file can hold, with half of a character in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name}: the text {text!r} holds half of a character. Pass another."
        ) from error


def to_path(value: object, name: str) -> Path:
    """Return an argument as a path; raises UsageError for what no path can be."""
    if not isinstance(value, (str, os.PathLike)):
        raise wrong_type(value, name, "a path")
    path = Path(value)
    try:
        is_possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise UsageError(f"{name}: {str(path)!r} cannot be the path of a file. Pass another.")
    return path


def to_number(value: Any, name: str) -> float:
    """Return a number as a float, an integer beyond all floats as infinity.

    Raises UsageError for other values.
    """
    require_type(value, Real, name, "a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def require_callable(value: object, name: str) -> None:
    """Raise UsageError for an argument that is neither None nor a function."""
    if value is not None and not callable(value):
        raise wrong_type(value, name, "a function, or None")


def to_count(value: Any, least: int, name: str) -> int:
    """Return a whole number; raises UsageError for other values and for one below `least`."""
    advice = f"a whole number, at least {least}"
    if isinstance(value, bool):
        raise wrong_type(value, name, advice)
    try:
        count = operator.index(value)
    except TypeError as error:
        raise wrong_type(value, name, advice) from error
    if count < least:
        raise UsageError(f"{name}: the argument is {count}. Pass {advice}.")
    return count
