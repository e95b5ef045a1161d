"""Text that is safe to show: names of a model reach terminals, logs and pages only through here."""

from __future__ import annotations

from typing import Any

#: The most characters of a message that are shown, and how many of them are its end, the fix.
_MOST_CHARACTERS = 2000
_LAST_CHARACTERS = 400


def escape_unprintable(text: str) -> str:
    r"""Return text in one line, with every character that cannot be printed as its escape.

    Line breaks, other controls such as ESC, direction overrides and lone surrogates become ``\n``,
    ``\x1b``, ``\u202e`` and ``\udcff``.
    """
    if text.isprintable():
        return text
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def escape_json(content: str) -> str:
    r"""Return JSON with ``\u`` escapes for the characters that cannot be printed.

    Outside of its texts JSON has no such characters but line breaks, so that its meaning stays.
    """
    lines = content.split("\n")
    return "\n".join(map(_escape_json_line, lines))


def _escape_json_line(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(map(_escape_json_character, line))


def _escape_json_character(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    codes = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
    return "".join(f"\\u{code}" for code in codes)


def encodable_name(name: str) -> str:
    """Return the name of a file as files and records hold it: bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_surrogates(content: Any) -> Any:
    """Return dicts, lists and texts with lone surrogates escaped, which no UTF-8 can hold.

    Python reads them from file names that are not UTF-8.
    """
    if isinstance(content, str):
        return encodable_name(content)
    if isinstance(content, dict):
        return {escape_surrogates(key): escape_surrogates(item) for key, item in content.items()}
    if isinstance(content, (list, tuple)):
        return [escape_surrogates(item) for item in content]
    return content


def shorten(text: str) -> str:
    """Return the beginning and the end of a text that is too long for a message."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    first = text[: _MOST_CHARACTERS - _LAST_CHARACTERS]
    return f"{first} [...] {text[-_LAST_CHARACTERS:]}"
