"""Changes to .npy and .npz files: types, shapes, names, values, and the header's text."""

from __future__ import annotations

import io
import random
import zipfile

import numpy as np

from fuzz.byte_mutations import mutate_bytes

_TYPES = ("f2", "f4", "f8", ">f4", "i1", "u8", "i8", "?", "c8", "U3", "S2", "M8[s]", "f4,i4", "V3")
_NAMES = ("x", "y", "", "x/y", "../x", "a\nb", "é", "arr_0", "x.npy", "X")


#: Pieces of a header, and what is put in their place.
_HEADER_CHANGES = (
    (b"(", b"(("), (b"}", b""), (b"'shape'", b"'shap'"), (b"(", b"(-1, "),
    (b"(", b"(99999999999, "), (b"<f4", b"|O"), (b"<f4", b">f9"), (b"<f4", b"f4', 'x"),
    (b"False", b"None"), (b"descr", b"a"), (b"{", b"[" * 200), (b",", b",\x00"),
    (b"1", b"1" * 5000), (b"(", b"(True, "), (b"(", b"(1.5, "), (b"'", b'"""'), (b" ", b"\n"),
    (b"{", b"{**"), (b"<f4", b"<f4" * 400),
)  # fmt: skip


def mutate_npy(content: bytes, rng: random.Random, count: int = 1) -> bytes:
    """Return an .npy file with another array, or with a damaged header."""
    if rng.random() < 0.5:
        return _mutate_header(content, rng)
    array = np.load(io.BytesIO(content))
    for _ in range(count):
        array = _mutate_array(array, rng)
    return _saved(array, rng)


def mutate_npz(content: bytes, rng: random.Random, count: int = 1) -> bytes:
    """Return an .npz file with other members."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(count):
        action = rng.choice(("array", "array", "array", "name", "lose", "repeat", "damage"))
        at = rng.randrange(len(members)) if members else 0
        if not members or action == "repeat":
            members.append((rng.choice(_NAMES) + ".npy", _saved(np.zeros((1, 2), np.float32), rng)))
        elif action == "array":
            members[at] = (members[at][0], mutate_npy(members[at][1], rng))
        elif action == "name":
            members[at] = (rng.choice(_NAMES) + rng.choice((".npy", "", ".txt")), members[at][1])
        elif action == "lose":
            del members[at]
        else:
            members[at] = (members[at][0], mutate_bytes(members[at][1], rng))
    return _archived(members, rng)


def _archived(members: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    out = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in dict.fromkeys(name for name, _ in members):
            archive.writestr(zipfile.ZipInfo(name), dict(members)[name])
    return out.getvalue()


def _saved(array: np.ndarray, rng: random.Random) -> bytes:
    out = io.BytesIO()
    version = rng.choice((None, (1, 0), (2, 0), (3, 0)))
    try:
        np.lib.format.write_array(out, array, version, allow_pickle=array.dtype.hasobject)
    except (ValueError, TypeError, UnicodeError):
        np.lib.format.write_array(out, np.zeros(1, np.float32))
    return out.getvalue()


def _mutate_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    action = rng.choice(("type", "shape", "values", "order", "object"))
    if action == "type":
        return np.zeros(array.shape, rng.choice(_TYPES))
    if action == "shape":
        shapes = ((), (0,), (1,), (0, *array.shape), (1, *array.shape), array.shape[1:], (2, 3))
        return np.zeros(rng.choice(shapes), array.dtype)
    if action == "order":
        return np.asfortranarray(array)[::-1]
    if action == "object":
        return np.array([None, "a", {}], object)
    changed = np.array(array, np.float64 if array.dtype.kind in "US" else array.dtype)
    if changed.size and changed.dtype.kind == "f":
        changed.flat[rng.randrange(changed.size)] = rng.choice(
            (np.nan, np.inf, -np.inf, 1e38, 1e-42)
        )
    return changed


def _mutate_header(content: bytes, rng: random.Random) -> bytes:
    """Change the dictionary in the header; its length stays or is that of the new text."""
    end = content.find(b"\n") + 1
    head, header, data = content[:10], content[10:end], content[end:]
    changed = header.replace(*rng.choice(_HEADER_CHANGES), 1)
    if rng.random() < 0.7:
        head = head[:8] + min(len(changed), 0xFFFF).to_bytes(2, "little")
    return head + changed + data
