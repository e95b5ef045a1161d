"""The format of a pair, its scales, and both as text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qdq.arrays import Array
from qdq.quantized.model import QuantizedEdge

#: Digits of a scale in a text.
_DIGITS = 6

#: The axis of several scales where a DQ has no attribute (ONNX operator DequantizeLinear).
_DEFAULT_AXIS = 1


class PairFormat(NamedTuple):
    """The element type of a pair, the axis of its scales, and its zero points."""

    dtype: str
    #: None for one scale.
    axis: int | None
    #: Empty where all are 0.
    zero_points: tuple[int, ...]


def read_format(quantized_edge: QuantizedEdge) -> PairFormat:
    """Return the format of a pair."""
    dtype = quantized_edge.dtype or quantized_edge.stored
    if not dtype and not quantized_edge.pair.zero_point:
        dtype = "uint8"
    axis = _read_axis(quantized_edge)
    values = quantized_edge.zero_points
    if values is None or not np.any(values):
        return PairFormat(dtype, axis, ())
    zero_points = tuple(map(int, values.reshape(-1)))
    return PairFormat(dtype, axis, zero_points)


def _read_axis(quantized_edge: QuantizedEdge) -> int | None:
    scales = quantized_edge.scales
    if scales is None or scales.size == 1:
        return None
    axis = quantized_edge.pair.axis
    return _DEFAULT_AXIS if axis is None else axis


def has_same_scales(old: QuantizedEdge, new: QuantizedEdge, tolerance: float = 0.0) -> bool:
    """Whether two pairs have equal scales, or both have unknown ones.

    Scales whose difference is at most `tolerance` times the older one count as equal.
    """
    if old.scales is None or new.scales is None:
        return old.scales is new.scales
    old_scales = old.scales.reshape(-1)
    new_scales = new.scales.reshape(-1)
    can_be_nan = old_scales.dtype.kind == new_scales.dtype.kind == "f"
    if not tolerance or old_scales.size != new_scales.size or not can_be_nan:
        return np.array_equal(old_scales, new_scales, equal_nan=can_be_nan)
    old_scales = old_scales.astype(np.float64)
    new_scales = new_scales.astype(np.float64)
    return np.allclose(new_scales, old_scales, rtol=tolerance, atol=0.0, equal_nan=True)


def find_scale_ratio(old: QuantizedEdge, new: QuantizedEdge) -> float | None:
    """Return the new scale of a pair over the old; of channels, the ratio farthest from 1.

    None where a scale is unknown or not a positive number, or where their numbers differ.
    """
    if old.scales is None or new.scales is None:
        return None
    old_scales = old.scales.reshape(-1)
    new_scales = new.scales.reshape(-1)
    if old_scales.size != new_scales.size or not old_scales.size:
        return None
    old_scales = old_scales.astype(np.float64)
    new_scales = new_scales.astype(np.float64)
    if not _is_all_positive(old_scales) or not _is_all_positive(new_scales):
        return None
    ratios = new_scales / old_scales
    distances = np.abs(np.log(ratios))
    farthest = distances.argmax()
    return float(ratios[farthest])


def _is_all_positive(scales: Array) -> bool:
    """Whether all scales are positive and finite."""
    is_valid = (scales > 0) & np.isfinite(scales)
    return bool(is_valid.all())


def describe_pair(quantized_edge: QuantizedEdge | None) -> str:
    """Return the format and scales of a pair as text, "" for no pair.

    Example: ``int8, 64 scales 0.001 to 0.02 along axis 0, zero point 128``.
    """
    if quantized_edge is None:
        return ""
    pair_format = read_format(quantized_edge)
    scales = _describe_scales(quantized_edge.scales)
    if pair_format.axis is not None:
        scales += f" along axis {pair_format.axis}"
    parts = [pair_format.dtype or "unknown type", scales]
    if pair_format.zero_points:
        parts.append(_describe_zero_points(pair_format.zero_points))
    if not quantized_edge.pair.zero_point:
        parts.append("no zero point")
    return ", ".join(parts)


def _describe_scales(scales: Array | None) -> str:
    if scales is None:
        return "computed scale"
    if not scales.size:
        return "no scale"
    if scales.size == 1:
        scale = float(scales.reshape(-1)[0])
        return f"scale {scale:.{_DIGITS}g}"
    least = float(scales.min())
    largest = float(scales.max())
    return f"{scales.size} scales {least:.{_DIGITS}g} to {largest:.{_DIGITS}g}"


def _describe_zero_points(zero_points: tuple[int, ...]) -> str:
    least = min(zero_points)
    largest = max(zero_points)
    if least == largest:
        return f"zero point {least}"
    return f"zero points {least} to {largest}"
