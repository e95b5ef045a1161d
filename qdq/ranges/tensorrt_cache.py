"""TensorRT's calibration cache: the text file of INT8 scales of its versions 8 to 10.

The first line is ``TRT-<version>-<calibrator>``, as in ``TRT-8601-EntropyCalibration2``. Every
other line is a tensor's name, ``": "`` and its scale, amax / 127, as the big-endian bytes of a
float32 in hexadecimal digits (Model Optimizer's calib_utils.py, import_scales_from_calib_cache;
YOLOv6's onnx_utils.py, save_calib_cache_file). A name may hold ``": "`` itself. Writers that omit
leading zeros write a scale of 0 as ``0``; every other scale of a calibration has eight digits.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from qdq.errors import DataError, UsageError

#: The first bytes of every cache.
CACHE_MAGIC = b"TRT-"

#: The version that is written by default: TensorRT 8.6.1.
CACHE_VERSION = "8601"
_HEADER = re.compile(r"TRT-[^\s-]+-\S+")
_VERSION = re.compile(r"[0-9A-Za-z.]+")
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{1,8}")
_ZERO = re.compile(r"0+")
_SEPARATOR = ": "
_DIGITS = 8

#: The least float32 that is not denormal. No smaller scale is written, as in a model.
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


class CachedScale(msgspec.Struct, frozen=True):
    """One line of a cache."""

    tensor: str
    #: A float32: amax / 127. 0 for a tensor that held only zeros.
    scale: float
    #: Its line in the file, from 1 on.
    line: int = 0


class Cache(msgspec.Struct, frozen=True):
    """A calibration cache, in the order of its lines."""

    #: Its first line.
    header: str
    scales: tuple[CachedScale, ...]


def cache_header(version: str = CACHE_VERSION) -> str:
    """Return the first line of a cache of TensorRT's default calibrator.

    Raises UsageError for a version that does not have a form such as 8601.
    """
    if not _VERSION.fullmatch(version):
        raise UsageError(
            f"TensorRT version {version!r}: the version does not have the form of caches. "
            f"Write it as in {CACHE_VERSION}."
        )
    return f"TRT-{version}-EntropyCalibration2"


def read_cache(content: bytes, path: Path) -> Cache:
    """Return the scales in a cache's bytes; raises DataError naming the file and the line."""
    first, *lines = _split_lines(content, path)
    header = first.rstrip()
    if not _HEADER.fullmatch(header):
        raise DataError(
            f"{path}:1: a calibration cache begins with a line such as {cache_header()}, "
            f"not {first[:60]!r}. Export the cache again."
        )
    scales: dict[str, CachedScale] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        tensor, scale = _parse_line(line, f"{path}:{number}")
        if tensor in scales:
            first_line = scales[tensor].line
            raise DataError(
                f"{path}:{number}: tensor {tensor!r} is on line {first_line} too. Remove one."
            )
        scales[tensor] = CachedScale(tensor, scale, number)
    if not scales:
        raise DataError(
            f"{path}: the cache holds no scales: it is truncated, or its calibration did not end. "
            "Export it again."
        )
    return Cache(header, tuple(scales.values()))


def _split_lines(content: bytes, path: Path) -> list[str]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8, but a calibration cache is a text file. "
            "Export it again."
        ) from error
    return [line.removesuffix("\r") for line in text.split("\n")]


def _parse_line(line: str, location: str) -> tuple[str, float]:
    """Return the tensor and the scale of a line."""
    tensor, _, digits = line.rpartition(_SEPARATOR)
    if not tensor:
        raise DataError(
            f"{location}: {line[:60]!r} is not of the form 'tensor: scale'. "
            "Remove the line or export the cache again."
        )
    return tensor, _parse_scale(digits, tensor, location)


def _parse_scale(text: str, tensor: str, location: str) -> float:
    digits = text.strip()
    if not _HEXADECIMAL.fullmatch(digits):
        raise DataError(
            f"{location}: {text[:60]!r} is not a scale. "
            f"Write the {_DIGITS} hexadecimal digits of a big-endian float32."
        )
    if len(digits) < _DIGITS and not _ZERO.fullmatch(digits):
        raise DataError(
            f"{location}: the scale {digits} of tensor {tensor!r} has {len(digits)} digits instead "
            f"of {_DIGITS}: the line is cut off. Export the cache again."
        )
    scale: float = struct.unpack(">f", bytes.fromhex(digits.zfill(_DIGITS)))[0]
    if not math.isfinite(scale) or math.copysign(1.0, scale) < 0.0:
        raise DataError(
            f"{location}: the scale {digits} of tensor {tensor!r} is {scale}. "
            "Write a finite number that is not negative."
        )
    if 0.0 < scale < _LEAST_SCALE:
        raise DataError(
            f"{location}: the scale {digits} of tensor {tensor!r} is {scale:.3g}, a denormal "
            "number. Export the cache again, or write 0 for a tensor of zeros."
        )
    return scale


def encode_cache(header: str, scales: Iterable[tuple[str, float]], source: str) -> bytes:
    """Return a cache of some tensors and their scales, rounded to float32, in their order.

    No scale above 0 is written as a denormal number. `source` is the origin of the scales in
    messages. Raises DataError for a name that no line can hold.
    """
    lines = [f"{header}\n"]
    for tensor, scale in scales:
        if not tensor or "\n" in tensor:
            raise DataError(
                f"{source}: tensor {tensor!r}: a calibration cache cannot hold this name. "
                "Export as yaml or json."
            )
        stored_scale = max(scale, _LEAST_SCALE) if scale > 0.0 else 0.0
        digits = struct.pack(">f", stored_scale).hex()
        lines.append(f"{tensor}{_SEPARATOR}{digits}\n")
    return "".join(lines).encode()
