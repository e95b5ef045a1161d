"""Files that hold ranges: read whatever wrote them, and written as a calibration cache, YAML or JSON."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from qdq.calibration.calibrator import KnownRanges, choose_ranges
from qdq.calibration.methods import DEFAULT_METHOD, Method, parse_method
from qdq.calibration.scales import PairScale, Scales
from qdq.errors import DataError, ModelError, UsageError, first_line
from qdq.quantized.model import QuantizedModel
from qdq.quantizer import ELEMENT_TYPES, FORMATS, INT8_LEVELS
from qdq.ranges.given_ranges import GivenRange, GivenRanges, GivenWeightRange, require_range
from qdq.ranges.handwritten import parse_handwritten_ranges
from qdq.ranges.model_ranges import read_pair_ranges
from qdq.ranges.range_file import MAGIC as OBSERVED
from qdq.ranges.range_file import decode_ranges
from qdq.ranges.tensor_ranges import Ranges
from qdq.ranges.tensorrt_cache import MAGIC, cache_header, encode_cache, read_cache

#: What ranges are exported as.
CACHE, YAML, JSON = "tensorrt-cache", "yaml", "json"
EXPORT_FORMATS = (CACHE, YAML, JSON)

#: Only the scales that `qdq calibrate` writes hold this key, and no tensor of theirs stands before it.
_SCALES_KEY = b'"by_pair"'
MODEL_SUFFIX = ".onnx"
_WIDE = 1_000_000
_DIGITS, _ALL_DIGITS = 6, 17


def read_given(path: Path) -> KnownRanges:
    """Return the ranges in a file of any kind, told apart by what it holds, but for models, which end in ``.onnx``.

    Ranges that were observed, a TensorRT calibration cache, scales that `qdq calibrate` wrote, a quantized model, or YAML or JSON that
    maps tensors to a number, amax, or to ``{amax: ...}`` or ``{scale: ...}``, a scale being that of INT8, amax / 127. A weight is mapped
    to a list of one of both, and to the ``axis`` that they go along.
    Raises DataError naming the file, the line and what is wrong in it, and ModelError for a model without pairs.
    """
    if path.suffix == MODEL_SUFFIX:
        return read_model_ranges(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    if content.startswith(OBSERVED):
        return decode_ranges(content, str(path))
    if content.startswith(MAGIC):
        return _from_cache(content, path)
    if content.lstrip().startswith(b"{") and _SCALES_KEY in content:
        return _from_scales(content, path)
    ranges, weights = parse_handwritten_ranges(content, path)
    return GivenRanges(path.name, ranges, str(path), weights=weights)


def read_exportable_ranges(path: Path, method: Method | None = None) -> GivenRanges:
    """Return the ranges in a file as `read_given` does, of observed ones those that a method chooses, `DEFAULT_METHOD` without one.

    Raises DataError and ModelError as that does, and UsageError for a method where nothing was observed.
    """
    found = read_given(path)
    if not isinstance(found, Ranges):
        if method is not None:
            raise UsageError(
                f"{path}: --method chooses from observed ranges, and this file says its own; leave it out"
            )
        return found
    try:
        chosen = choose_ranges(found, method or parse_method(DEFAULT_METHOD))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return GivenRanges(
        path.name,
        tuple(GivenRange(tensor, amax) for tensor, amax in chosen.items()),
        str(path),
        strict=False,
    )


def read_model_ranges(path: Path) -> GivenRanges:
    """Return the ranges that a quantized model's pairs stand for; raises ModelError where it has none.

    Where several pairs stand on one tensor, the largest range.
    """
    found = read_pair_ranges(QuantizedModel(path))
    if not found.by_tensor and not found.weights:
        raise ModelError(
            f"{path}: no pair in it has a constant scale and zero point; pass a model that is quantized"
        )
    return msgspec.structs.replace(found, name=path.name, path=str(path))


def encode_given_ranges(given: GivenRanges, layout: str, version: str | None = None) -> bytes:
    """Return ranges as one of LAYOUTS.

    A cache begins as the one that was read, or as TensorRT `version` writes it, and holds no weights. YAML and JSON hold amax, with
    as few digits as give the same scales. Raises DataError for a name that a cache cannot hold.
    """
    weights = {weight.tensor: weight for weight in given.weights}
    if layout == CACHE:
        header = (
            cache_header(*[version] if version else [])
            if version or not given.header
            else given.header
        )
        return encode_cache(
            header,
            ((r.tensor, r.amax / INT8_LEVELS) for r in given.by_tensor if r.tensor not in weights),
            given.path or given.name,
        )
    content: dict[str, Any] = {r.tensor: _short(r.amax) for r in given.by_tensor}
    content |= {tensor: _weight_content(weight) for tensor, weight in weights.items()}
    if layout == JSON:
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    plain = all(
        map(str.isprintable, content)
    )  # PyYAML leaves some line breaks of Unicode as they are, where it may
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=plain, width=_WIDE)
    return text.encode()


def _weight_content(weight: GivenWeightRange) -> dict[str, Any]:
    axis = {} if weight.axis is None else {"axis": weight.axis}
    return {**axis, "amax": [_short(amax) for amax in weight.amax]}


def _short(amax: float) -> float:
    """Return the number of fewest digits, from six on, that gives the same float32 scale of every type."""
    largest = np.array([element.largest for element in ELEMENT_TYPES.values()])
    tries = (float(f"{amax:.{digits}g}") for digits in range(_DIGITS, _ALL_DIGITS))
    with np.errstate(over="ignore"):
        scales = (amax / largest).astype(np.float32)
        return next(
            (short for short in tries if ((short / largest).astype(np.float32) == scales).all()),
            amax,
        )


def _from_cache(content: bytes, path: Path) -> GivenRanges:
    cache = read_cache(content, path)
    ranges = tuple(GivenRange(s.tensor, s.scale * INT8_LEVELS, s.line) for s in cache.scales)
    return GivenRanges(path.name, ranges, str(path), strict=False, header=cache.header)


def _from_scales(content: bytes, path: Path) -> GivenRanges:
    try:
        scales = msgspec.json.decode(content, type=Scales)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not a scales file that qdq can read: {first_line(error)}; make one with 'qdq calibrate'"
        ) from error
    pairs = [pair for pair in scales.by_pair if _is_activation(pair)]
    found = _largest(
        path, ((pair.tensor, pair.scales[0] * pair.quantizer.element.largest) for pair in pairs)
    )
    return GivenRanges(path.name, found, str(path), strict=False)


def _is_activation(pair: PairScale) -> bool:
    name, dtype = pair.quantizer.name, pair.quantizer.dtype
    return (
        name in FORMATS
        and dtype in ELEMENT_TYPES
        and pair.quantizer.calibrated
        and len(pair.scales) == 1
    )


def _largest(path: Path, ranges: Iterable[tuple[str, float]]) -> tuple[GivenRange, ...]:
    """Return the largest range of each tensor."""
    found: dict[str, float] = {}
    for tensor, amax in ranges:
        require_range(amax, f"{path}: tensor {tensor!r}")
        found[tensor] = max(amax, found.get(tensor, amax))
    return tuple(GivenRange(tensor, amax) for tensor, amax in found.items())
