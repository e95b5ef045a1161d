"""Files that hold ranges: read whatever wrote them, and written as a calibration cache, YAML or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from qdq.calibration import Given, PairScale, Scales, choose
from qdq.errors import DataError, ModelError, RuleError, UsageError, first_line
from qdq.existing import ranges_in
from qdq.givenranges import LARGEST, GivenRange, GivenRanges, require_range
from qdq.methods import DEFAULT_METHOD, Method, parse_method
from qdq.quantized import QuantizedModel
from qdq.quantizer import ELEMENT_TYPES, FORMATS, INT8_LEVELS
from qdq.rangefile import MAGIC as OBSERVED
from qdq.rangefile import decode_ranges
from qdq.ranges import Ranges
from qdq.strictyaml import Located, parse_texts
from qdq.trtcache import MAGIC, cache_bytes, cache_header, read_cache

#: What ranges are exported as.
CACHE, YAML, JSON = "tensorrt-cache", "yaml", "json"
LAYOUTS = (CACHE, YAML, JSON)
#: Only the scales that `qdq calibrate` writes hold this key, and no tensor of theirs stands before it.
_SCALES_KEY = b'"by_pair"'
MODEL_SUFFIX = ".onnx"
_WAYS = ("amax", "scale")
_WIDE = 1_000_000
_DIGITS, _ALL_DIGITS = 6, 17


def read_given(path: Path) -> Given:
    """Return the ranges in a file of any kind, told apart by what it holds, but for models, which end in ``.onnx``.

    Ranges that were observed, a TensorRT calibration cache, scales that `qdq calibrate` wrote, a quantized model, or YAML or JSON that
    maps tensors to a number, amax, or to ``{amax: ...}`` or ``{scale: ...}``, a scale being that of INT8, amax / 127.
    Raises DataError naming the file, the line and what is wrong in it, and ModelError for a model without pairs.
    """
    if path.suffix == MODEL_SUFFIX:
        return given_by_model(path)
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
    return GivenRanges(path.name, tuple(_by_hand(content, path)), str(path))


def read_said(path: Path, method: Method | None = None) -> GivenRanges:
    """Return the ranges in a file as `read_given` does, of observed ones those that a method chooses, `DEFAULT_METHOD` without one.

    Raises DataError and ModelError as that does, and UsageError for a method where nothing was observed.
    """
    found = read_given(path)
    if not isinstance(found, Ranges):
        if method is not None:
            raise UsageError(f"{path}: --method chooses from observed ranges, and this file says its own; leave it out")
        return found
    try:
        chosen = choose(found, method or parse_method(DEFAULT_METHOD))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return GivenRanges(path.name, tuple(GivenRange(tensor, amax) for tensor, amax in chosen.items()), str(path), strict=False)


def given_by_model(path: Path) -> GivenRanges:
    """Return the ranges that a quantized model's pairs stand for; raises ModelError where it has none.

    Where several pairs stand on one tensor, the largest range.
    """
    found = ranges_in(QuantizedModel(path))
    if not found.by_tensor and not found.weights:
        raise ModelError(f"{path}: no pair in it has a constant scale and zero point; pass a model that is quantized")
    return msgspec.structs.replace(found, name=path.name, path=str(path))


def given_bytes(given: GivenRanges, layout: str, version: str | None = None) -> bytes:
    """Return ranges as one of LAYOUTS.

    A cache begins as the one that was read, or as TensorRT `version` writes it. YAML and JSON hold amax, with
    as few digits as give the same scales. Raises DataError for a name that a cache cannot hold.
    """
    if layout == CACHE:
        header = cache_header(*[version] if version else []) if version or not given.header else given.header
        return cache_bytes(header, ((r.tensor, r.amax / INT8_LEVELS) for r in given.by_tensor), given.path or given.name)
    content = {r.tensor: _short(r.amax) for r in given.by_tensor}
    if layout == JSON:
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    plain = all(map(str.isprintable, content))  # PyYAML leaves some line breaks of Unicode as they are, where it may
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=plain, width=_WIDE)
    return text.encode()


def _short(amax: float) -> float:
    """Return the number of fewest digits, from six on, that gives the same float32 scale of every type."""
    largest = np.array([element.largest for element in ELEMENT_TYPES.values()])
    tries = (float(f"{amax:.{digits}g}") for digits in range(_DIGITS, _ALL_DIGITS))
    with np.errstate(over="ignore"):
        scales = (amax / largest).astype(np.float32)
        return next((short for short in tries if ((short / largest).astype(np.float32) == scales).all()), amax)


def _from_cache(content: bytes, path: Path) -> GivenRanges:
    cache = read_cache(content, path)
    ranges = tuple(GivenRange(s.tensor, s.scale * INT8_LEVELS, s.line) for s in cache.scales)
    return GivenRanges(path.name, ranges, str(path), strict=False, header=cache.header)


def _from_scales(content: bytes, path: Path) -> GivenRanges:
    try:
        scales = msgspec.json.decode(content, type=Scales)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a scales file that qdq can read: {first_line(error)}; make one with 'qdq calibrate'") from error
    pairs = [pair for pair in scales.by_pair if _is_activation(pair)]
    found = _largest(path, ((pair.tensor, pair.scales[0] * pair.quantizer.element.largest) for pair in pairs))
    return GivenRanges(path.name, found, str(path), strict=False)


def _is_activation(pair: PairScale) -> bool:
    name, dtype = pair.quantizer.name, pair.quantizer.dtype
    return name in FORMATS and dtype in ELEMENT_TYPES and pair.quantizer.calibrated and len(pair.scales) == 1


def _largest(path: Path, ranges: Iterable[tuple[str, float]]) -> tuple[GivenRange, ...]:
    """Return the largest range of each tensor."""
    found: dict[str, float] = {}
    for tensor, amax in ranges:
        require_range(amax, f"{path}: tensor {tensor!r}")
        found[tensor] = max(amax, found.get(tensor, amax))
    return tuple(GivenRange(tensor, amax) for tensor, amax in found.items())


def _by_hand(content: bytes, path: Path) -> Iterator[GivenRange]:
    try:
        found = _parsed(content)
    except RuleError as error:
        raise DataError(f"{path}:{error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{path}:{line}: neither a calibration cache nor YAML: {error.problem}; a line is 'tensor: amax', with names in quotes") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: neither a calibration cache nor YAML: {first_line(error)}; a line is 'tensor: amax'") from error
    if not isinstance(found, Located) or not found:
        raise DataError(f"{path}:1: maps no tensor to a range; a line is 'tensor: amax', or 'tensor: {{scale: ...}}'")
    for tensor, value in found.items():
        line = found.lines[tensor]
        amax = _amax(value, f"{path}:{line}: tensor {tensor!r}")
        require_range(amax, f"{path}:{line}: tensor {tensor!r}")
        yield GivenRange(tensor, amax, line)


def _amax(value: Any, where: str) -> float:
    if isinstance(value, str):
        return _number(value, where)
    if not isinstance(value, Located) or len(value) != 1 or next(iter(value)) not in _WAYS:
        raise DataError(f"{where}: write a number, its amax, or one of {{amax: ...}} and {{scale: ...}}")
    way, text = next(iter(value.items()))
    number = _number(text, where)
    if way == "scale" and abs(number) * INT8_LEVELS > LARGEST:
        raise DataError(f"{where}: the scale {text} is larger than a float32; write amax / {INT8_LEVELS}")
    return number if way == "amax" else (float(np.float32(number)) or number) * INT8_LEVELS


def _number(text: Any, where: str) -> float:
    try:
        return float(text.replace("_", "?"))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{where}: {text!r} is no number; write one, such as 2.5") from error


def _parsed(content: bytes) -> Any:
    """Return what YAML or JSON says with its lines; in JSON, names may hold what YAML reads otherwise, such as its line breaks."""
    if content.lstrip().startswith(b"{"):
        try:
            text = content.decode()
            return json.loads(text, object_pairs_hook=_Lines(text).located, parse_float=str, parse_int=str, parse_constant=str)
        except json.JSONDecodeError:
            pass  # a YAML mapping in braces
    return parse_texts(content)


class _Lines:
    """Where the keys of a JSON text stand; its parser gives them in order, those of an inner object before the one around it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def located(self, pairs: list[tuple[str, Any]]) -> Located:
        """Return an object as a mapping with lines; raises RuleError for a key that is given twice."""
        mapping, start = Located(), 0
        for key, value in pairs:
            found = self.text.find(json.dumps(key, ensure_ascii=False), start)
            start = max(found, start)
            line = self.text.count("\n", 0, start) + 1
            if key in mapping:
                raise RuleError(f"{line}: the key {key!r} is given twice; remove one")
            mapping[key], mapping.lines[key] = value, line
            start += found >= 0
        return mapping
