"""Records as stable JSON for programs."""

from __future__ import annotations

from typing import Any

import msgspec

#: The version of the JSON layout, raised when a field changes its meaning or is removed.
JSON_VERSION = 2

#: The key of the version.
VERSION_KEY = "qdq_json"


def to_json(record: Any) -> str:
    """Return a record as indented JSON, the layout's version first."""
    content = {VERSION_KEY: JSON_VERSION, **to_plain(record)}
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
    return encoded.decode() + "\n"


def to_plain(record: Any) -> dict[str, Any]:
    """Return a record as dicts, lists, texts and numbers; NaN and infinity become null."""
    content: dict[str, Any] = msgspec.to_builtins(record, str_keys=True)
    return content
