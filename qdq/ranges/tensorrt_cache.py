"""TensorRT's calibration cache: the text file in which versions 8 to 10 kept the INT8 scale of each tensor.

The first line is ``TRT-<version>-<calibrator>``, as in ``TRT-8601-EntropyCalibration2``; every other one is a
tensor's name, ``": "``, and its scale, amax / 127, as the big-endian bytes of a float32 in hexadecimal digits
(Model Optimizer's calib_utils.py, import_scales_from_calib_cache; YOLOv6's onnx_utils.py,
save_calib_cache_file). A name may hold ``": "`` itself, and some writers leave leading zeros out.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from qdq.errors import DataError, UsageError

#: What every cache begins with.
MAGIC = b"TRT-"

#: The version that is written unless another is asked for: TensorRT 8.6.1.
VERSION = "8601"
_HEADER = re.compile(r"TRT-[^\s-]+-\S+")
_VERSION = re.compile(r"[0-9A-Za-z.]+")
_SCALE = re.compile(r"[0-9a-fA-F]{1,8}")
_SEPARATOR = ": "
_DIGITS = 8


class CachedScale(msgspec.Struct, frozen=True):
    """One line of a cache."""

    tensor: str
    #: A float32: amax / 127. 0 for a tensor that held only zeros.
    scale: float
    #: Where it stands in the file, from 1 on.
    line: int = 0


class Cache(msgspec.Struct, frozen=True):
    """A calibration cache, in the order of its lines."""

    #: Its first line.
    header: str
    scales: tuple[CachedScale, ...]


def cache_header(version: str = VERSION) -> str:
    """Return the first line of a cache of TensorRT's default calibrator; raises UsageError for a version that is no word such as 8601."""
    if not _VERSION.fullmatch(version):
        raise UsageError(f"TensorRT version {version!r}: write it as caches do, such as {VERSION}")
    return f"TRT-{version}-EntropyCalibration2"


def read_cache(content: bytes, path: Path) -> Cache:
    """Return the scales in a cache's bytes; raises DataError naming the file, the line and what is wrong in it."""
    try:
        lines = [line.removesuffix("\r") for line in content.decode().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is no UTF-8; a calibration cache is a text file"
        ) from error
    if not _HEADER.fullmatch(lines[0].rstrip()):
        raise DataError(
            f"{path}:1: a calibration cache begins with a line such as {cache_header()}, not {lines[0][:60]!r}"
        )
    found: dict[str, CachedScale] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        tensor, scale = _line(line, f"{path}:{number}")
        if tensor in found:
            raise DataError(
                f"{path}:{number}: tensor {tensor!r} stands on line {found[tensor].line} too; remove one"
            )
        found[tensor] = CachedScale(tensor, scale, number)
    if not found:
        raise DataError(f"{path}: holds no scales; it was cut off, or its calibration never ended")
    return Cache(lines[0].rstrip(), tuple(found.values()))


def _line(line: str, at: str) -> tuple[str, float]:
    tensor, separator, digits = line.rpartition(_SEPARATOR)
    if not separator or not tensor:
        raise DataError(
            f"{at}: {line[:60]!r} is no 'tensor: scale'; remove the line, or export the cache again"
        )
    if not _SCALE.fullmatch(digits.strip()):
        raise DataError(
            f"{at}: {digits[:60]!r} is no scale: write the {_DIGITS} hexadecimal digits of a big-endian float32"
        )
    scale: float = struct.unpack(">f", bytes.fromhex(digits.strip().zfill(_DIGITS)))[0]
    if not math.isfinite(scale) or math.copysign(1.0, scale) < 0.0:
        raise DataError(
            f"{at}: the scale {digits.strip()} of tensor {tensor!r} is {scale}; it must be a finite number that is not negative"
        )
    return tensor, scale


def encode_cache(header: str, scales: Iterable[tuple[str, float]], source: str) -> bytes:
    """Return a cache of some tensors and their scales, rounded to float32, in their order.

    Raises DataError, naming the `source` they are from, for a name that no line can hold.
    """
    lines = [header]
    for tensor, scale in scales:
        if not tensor or "\n" in tensor:
            raise DataError(
                f"{source}: tensor {tensor!r}: a calibration cache cannot hold this name; export as yaml or json"
            )
        lines.append(f"{tensor}{_SEPARATOR}{struct.pack('>f', scale).hex()}")
    return "".join(f"{line}\n" for line in lines).encode()
