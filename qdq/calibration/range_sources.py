"""Files that hold ranges: read from many tools, written as a calibration cache, YAML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from qdq.arguments import to_path
from qdq.calibration.methods import DEFAULT_METHOD, Method, parse_method
from qdq.calibration.scale_choice import choose_ranges
from qdq.calibration.scales import PairScale, Scales
from qdq.errors import DataError, ModelError, UsageError, first_line
from qdq.files.command_files import note_input
from qdq.graph.equalized_weights import read_equalizations
from qdq.printable import encodable_name
from qdq.quantized.model import QuantizedModel
from qdq.quantizer import ELEMENT_TYPES, FORMATS, INT8_LEVELS
from qdq.ranges.given_ranges import GivenRange, GivenRanges
from qdq.ranges.given_weights import GivenWeightRange
from qdq.ranges.handwritten import parse_handwritten_ranges
from qdq.ranges.known_ranges import KnownRanges
from qdq.ranges.model_ranges import read_pair_ranges
from qdq.ranges.range_file import RANGES_MAGIC as OBSERVED_MAGIC
from qdq.ranges.range_file import decode_ranges
from qdq.ranges.range_limits import require_range
from qdq.ranges.tensor_ranges import Ranges
from qdq.ranges.tensorrt_cache import CACHE_MAGIC, cache_header, encode_cache, read_cache

#: The formats that ranges are exported in.
CACHE, YAML, JSON = "tensorrt-cache", "yaml", "json"
EXPORT_FORMATS = (CACHE, YAML, JSON)

#: A key that only the scales of `qdq calibrate` have; no name of a tensor comes before it.
_SCALES_KEY = b'"by_pair"'
MODEL_SUFFIX = ".onnx"

#: The width of YAML, so that no line is folded.
_YAML_WIDTH = 1_000_000

#: The numbers of digits that are tried for an amax.
_DIGITS = range(6, 17)


def read_given(path: str | Path) -> KnownRanges:
    """Return the ranges in a file of any kind.

    The kind follows from the content: observed ranges, a TensorRT calibration cache, scales that
    `qdq calibrate` wrote, or YAML or JSON. YAML and JSON map a tensor to its amax, to
    ``{amax: ...}`` or to ``{scale: ...}``, the scale of INT8, amax / 127. They map a weight to a
    list of either, and to the ``axis`` that it belongs to. A file that ends in ``.onnx`` is a
    quantized model. Raises DataError with the file, the line and the mistake, and ModelError for
    a model without pairs.
    """
    path = to_path(path, "path")
    if path.suffix == MODEL_SUFFIX:
        return read_model_ranges(path)
    note_input(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the file cannot be read: {error.strerror}. Check the path."
        ) from error
    if content.startswith(OBSERVED_MAGIC):
        return decode_ranges(content, str(path))
    if content.startswith(CACHE_MAGIC):
        return _decode_cache(content, path)
    if content.lstrip().startswith(b"{") and _SCALES_KEY in content:
        return _decode_scales(content, path)
    ranges, weights = parse_handwritten_ranges(content, path)
    return GivenRanges(encodable_name(path.name), ranges, str(path), weights=weights)


def read_exportable_ranges(path: Path, method: Method | None = None) -> GivenRanges:
    """Return the ranges in a file as `read_given` does, in a form that can be exported.

    Of observed ranges, returns those that a method chooses, `DEFAULT_METHOD` by default. Raises
    DataError and ModelError as `read_given` does, and UsageError for a method where nothing was
    observed.
    """
    ranges = read_given(path)
    if not isinstance(ranges, Ranges):
        if method is not None:
            raise UsageError(
                f"{path}: --method chooses from observed ranges, and this file gives its ranges. "
                "Drop --method."
            )
        return ranges
    try:
        chosen_amax = choose_ranges(ranges, method or parse_method(DEFAULT_METHOD))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    by_tensor = tuple(GivenRange(tensor, amax) for tensor, amax in chosen_amax.items())
    return GivenRanges(encodable_name(path.name), by_tensor, str(path), strict=False)


def read_model_ranges(path: Path) -> GivenRanges:
    """Return the ranges of a quantized model's pairs, the largest of several on one tensor.

    Tensors and weights that equalization changed are left out: their ranges are not those of the
    float model. Raises ModelError for a model without any.
    """
    quantized_model = QuantizedModel(path)
    ranges = _leave_out_equalized(quantized_model, read_pair_ranges(quantized_model))
    if not ranges.by_tensor and not ranges.weights:
        raise ModelError(
            f"{path}: no pair of the model has a constant scale and zero point. "
            "Pass a quantized model."
        )
    return msgspec.structs.replace(ranges, name=path.name, path=str(path))


def _leave_out_equalized(quantized_model: QuantizedModel, ranges: GivenRanges) -> GivenRanges:
    """Return the ranges of the tensors of the main graph that equalization did not change."""
    changed: set[str] = set()
    for equalization in read_equalizations(quantized_model.stripped, quantized_model.source.name):
        changed.update(equalization.tensors)
        changed.update(weight.tensor for weight in equalization.weights)
    return msgspec.structs.replace(
        ranges,
        by_tensor=tuple(item for item in ranges.by_tensor if item.tensor not in changed),
        weights=tuple(item for item in ranges.weights if item.tensor not in changed),
    )


def encode_given_ranges(ranges: GivenRanges, layout: str, version: str | None = None) -> bytes:
    """Return ranges in one of EXPORT_FORMATS.

    A cache holds no weights. It begins as the one that was read, or as TensorRT `version` writes
    it. YAML and JSON hold amax, with the fewest digits that give the same scales. Raises DataError
    for a name that a cache cannot hold.
    """
    if layout == CACHE:
        return _encode_cache(ranges, version)
    content: dict[str, Any] = {}
    for item in ranges.by_tensor:
        content[item.tensor] = _shorten(item.amax)
    for weight in ranges.weights:
        content[weight.tensor] = _weight_content(weight)
    if layout == JSON:
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    # PyYAML keeps some line breaks of Unicode as they are where it may write Unicode.
    is_printable = all(map(str.isprintable, content))
    text: str = yaml.safe_dump(
        content, sort_keys=False, allow_unicode=is_printable, width=_YAML_WIDTH
    )
    return text.encode()


def _encode_cache(ranges: GivenRanges, version: str | None) -> bytes:
    header = ranges.header or cache_header()
    if version:
        header = cache_header(version)
    weights = {weight.tensor for weight in ranges.weights}
    scales = []
    for item in ranges.by_tensor:
        if item.tensor not in weights:
            scale = item.amax / INT8_LEVELS
            scales.append((item.tensor, scale))
    return encode_cache(header, scales, ranges.path or ranges.name)


def _weight_content(weight: GivenWeightRange) -> dict[str, Any]:
    amax = [_shorten(value) for value in weight.amax]
    if weight.axis is None:
        return {"amax": amax}
    if weight.block_size:
        return {"axis": weight.axis, "block_size": weight.block_size, "amax": amax}
    return {"axis": weight.axis, "amax": amax}


def _shorten(amax: float) -> float:
    """Return the number with the fewest digits that gives the same float32 scale in every type."""
    largest = np.array([element.largest for element in ELEMENT_TYPES.values()])
    with np.errstate(over="ignore"):
        scales = (amax / largest).astype(np.float32)
        for digits in _DIGITS:
            short_amax = float(f"{amax:.{digits}g}")
            short_scales = (short_amax / largest).astype(np.float32)
            if np.array_equal(short_scales, scales):
                return short_amax
    return amax


def _decode_cache(content: bytes, path: Path) -> GivenRanges:
    cache = read_cache(content, path)
    ranges = []
    for entry in cache.scales:
        amax = entry.scale * INT8_LEVELS
        ranges.append(GivenRange(entry.tensor, amax, entry.line))
    return GivenRanges(
        encodable_name(path.name), tuple(ranges), str(path), strict=False, header=cache.header
    )


def _decode_scales(content: bytes, path: Path) -> GivenRanges:
    try:
        scales = msgspec.json.decode(content, type=Scales)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: the file is not a scales file that qdq can read: {first_line(error)}. "
            "Write one with 'qdq calibrate'."
        ) from error
    largest_amax: dict[str, float] = {}
    for pair in scales.by_pair:
        if not _is_activation(pair):
            continue
        tensor = pair.tensor
        amax = pair.scales[0] * pair.quantizer.element.largest
        require_range(amax, f"{path}: tensor {tensor!r}")
        largest_amax[tensor] = max(amax, largest_amax.get(tensor, amax))
    ranges = tuple(GivenRange(tensor, amax) for tensor, amax in largest_amax.items())
    return GivenRanges(encodable_name(path.name), ranges, str(path), strict=False)


def _is_activation(pair: PairScale) -> bool:
    quantizer = pair.quantizer
    if quantizer.name not in FORMATS or quantizer.dtype not in ELEMENT_TYPES:
        return False
    return quantizer.calibrated and len(pair.scales) == 1
