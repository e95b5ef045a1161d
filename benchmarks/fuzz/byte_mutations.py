"""Damage to the bytes of any file: flipped, lost, repeated, inserted."""

from __future__ import annotations

import random
from collections.abc import Callable

ByteMutation = Callable[[bytearray, random.Random], None]

#: What parsers of text, numbers and archives take for something else than data.
TOKENS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\t", b"\x1b[31m", b"\xc3\x28",
    b"\xe2\x80\xa8", b"-1", b"0", b"1e999", b"nan", b".inf", b"9" * 40, b"0x10", b"1_000", b"null",
    b"~", b"true", b"[", b"]", b"{", b"}", b"[" * 3000, b"{a: " * 1500, b"- " * 2000, b": ", b"#",
    b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.getcwd []", b"!!binary aa", b"---\n",
    b"...\n", b"|\n", b">\n", b"\"", b"'", b"\\", b"\\ud800", b"2020-01-01", b"%YAML 9.9\n",
    b"/", b"../", b"=", b",", b"PK\x03\x04", b"\x93NUMPY", b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
)  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random, count: int = 1) -> bytes:
    """Return a copy with some changes."""
    damaged = bytearray(content)
    for _ in range(count):
        rng.choice(BYTE_MUTATIONS)(damaged, rng)
    return bytes(damaged)


def _place(content: bytearray, rng: random.Random) -> int:
    return rng.randrange(len(content)) if content else 0


def _flip_bit(content: bytearray, rng: random.Random) -> None:
    if content:
        content[_place(content, rng)] ^= 1 << rng.randrange(8)


def _replace_byte(content: bytearray, rng: random.Random) -> None:
    if content:
        content[_place(content, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _truncate(content: bytearray, rng: random.Random) -> None:
    del content[_place(content, rng) :]


def _lose_range(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    del content[start : start + rng.choice((1, 2, 4, 16, 64, 1024))]


def _repeat_range(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    repeated = content[start : start + rng.choice((1, 4, 16, 64))]
    content[start:start] = repeated * rng.choice((1, 2, 50))


def _insert_token(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    content[start:start] = rng.choice(TOKENS)


def _overwrite_with_token(content: bytearray, rng: random.Random) -> None:
    start, token = _place(content, rng), rng.choice(TOKENS)
    content[start : start + len(token)] = token


def _insert_noise(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    content[start:start] = rng.randbytes(rng.choice((1, 3, 9)))


def _swap_ranges(content: bytearray, rng: random.Random) -> None:
    first, second = sorted((_place(content, rng), _place(content, rng)))
    size = min(rng.choice((1, 4, 16)), second - first)
    left, right = content[first : first + size], content[second : second + size]
    content[first : first + len(right)] = right
    content[second : second + len(left)] = left


def _swap_lines(content: bytearray, rng: random.Random) -> None:
    lines = content.split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    content[:] = b"\n".join(lines)


def _repeat_line(content: bytearray, rng: random.Random) -> None:
    lines = content.split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    content[:] = b"\n".join(lines)


def _indent_line(content: bytearray, rng: random.Random) -> None:
    lines = content.split(b"\n")
    chosen = rng.randrange(len(lines))
    lines[chosen] = rng.choice((b" ", b"  ", b"\t", b"- ")) + lines[chosen]
    content[:] = b"\n".join(lines)


BYTE_MUTATIONS: tuple[ByteMutation, ...] = (
    _flip_bit,
    _replace_byte,
    _truncate,
    _lose_range,
    _repeat_range,
    _insert_token,
    _overwrite_with_token,
    _insert_noise,
    _swap_ranges,
    _swap_lines,
    _repeat_line,
    _indent_line,
)
