"""Changes to files of observed ranges below their checksum, which is made to fit again."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec

from fuzz.byte_mutations import mutate_bytes
from fuzz.value_mutations import mutate_value


def mutate_ranges(content: bytes, rng: random.Random, count: int = 1) -> bytes:
    """Return a file of ranges or a checkpoint with other values or bytes and a right checksum."""
    head, _, record = content.partition(b"\n")
    if rng.random() < 0.3:
        changed = mutate_bytes(record, rng, count)
    else:
        values = mutate_value(msgspec.msgpack.decode(record), rng, count)
        changed = msgspec.msgpack.encode(_encodable(values))
    digest = hashlib.sha256(changed).hexdigest().encode()
    magic_and_version = head.rsplit(b" ", 1)[0]
    return magic_and_version + b" " + digest + b"\n" + changed


def _encodable(value: Any) -> Any:
    """Return a value with integers that MessagePack holds and texts that UTF-8 holds."""
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return 1 << 63
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value
