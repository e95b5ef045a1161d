"""Records as stable JSON for programs."""

from __future__ import annotations

from typing import Any

import msgspec

from qdq.printable import escape_json, escape_surrogates

#: The version of the JSON layout, raised when a field changes its meaning or is removed.
JSON_VERSION = 2

#: The key of the version.
VERSION_KEY = "qdq_json"


def to_json(record: Any) -> str:
    """Return a record as indented JSON, the layout's version first."""
    return encode_json({VERSION_KEY: JSON_VERSION, **to_plain(record)}, indent=2)


def encode_json(content: Any, indent: int) -> str:
    """Return dicts, lists, texts and numbers as indented JSON.

    Characters that cannot be printed are escaped, and bytes of file names that are not UTF-8.
    """
    try:
        encoded = msgspec.json.encode(content)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(escape_surrogates(content))
    text = msgspec.json.format(encoded, indent=indent).decode()
    return escape_json(text) + "\n"


def to_plain(record: Any) -> dict[str, Any]:
    """Return a record as dicts, lists, texts and numbers; NaN and infinity become null."""
    content: dict[str, Any] = msgspec.to_builtins(record, str_keys=True)
    return content
