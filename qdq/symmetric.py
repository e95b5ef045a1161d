"""A pair of any integer type, with any zero point, read as TensorRT's: symmetric, one range, zero point 0."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx

from qdq.index import Array
from qdq.quantized import QuantizedEdge
from qdq.quantizer import ELEMENT_TYPES, INT8, INT8_LEVELS, integer_levels


class Coarser(msgspec.Struct, frozen=True):
    """An activation whose symmetric INT8 steps are larger than the steps it had."""

    tensor: str
    #: The type that it had, and its zero point.
    dtype: str
    zero_point: int
    scale: float
    #: The scale of the symmetric pair in its place.
    symmetric: float

    @property
    def times(self) -> float:
        """How many times as large the steps are: the noise of rounding grows by 20 log10 of it, in dB."""
        return self.symmetric / self.scale


def type_of(found: QuantizedEdge) -> str:
    """Return the type of the integers, or 8-bit floats, of a pair: what its zero point says, else what is stored, else INT8 as TensorRT reads it."""
    return found.dtype or found.stored or (INT8 if found.pair.levels is None or found.pair.levels[0] < 0 else "uint8")


def levels_of(found: QuantizedEdge) -> tuple[int, int] | None:
    """Return the least and largest integer that a pair holds; None for a type that is none of integers."""
    return found.pair.levels or integer_levels(getattr(onnx.TensorProto, type_of(found).upper(), 0))


def amax_of(found: QuantizedEdge) -> Array | None:
    """Return the absolute value that maps to the end of the symmetric range, for each scale of a pair; None where it is not known.

    A pair whose values INT8 with zero point 0 holds at the same scale keeps that scale exactly. Of others the lowest integer is left
    out, as symmetric INT8 leaves out -128.
    """
    if found.scales is None or (found.pair.zero_point and found.zero_points is None):
        return None
    scales, levels = found.scales.astype(np.float32).astype(np.float64), levels_of(found)
    if levels is None:
        element = ELEMENT_TYPES.get(type_of(found))
        return None if element is None else scales * element.largest
    if is_symmetric(found):
        return scales * INT8_LEVELS
    zero = np.zeros(()) if found.zero_points is None else found.zero_points.astype(np.float64)
    amax: Array = np.maximum(levels[1] - zero, zero - levels[0] - 1) * scales
    return amax


def is_symmetric(found: QuantizedEdge) -> bool:
    """Whether INT8 with zero point 0 holds every value of a pair at the same scale."""
    levels = levels_of(found)
    if levels is None or (found.pair.zero_point and found.zero_points is None):
        return False
    zero = np.zeros(()) if found.zero_points is None else found.zero_points.astype(np.int64)
    return bool((levels[0] - zero >= -INT8_LEVELS - 1).all() and (levels[1] - zero <= INT8_LEVELS).all())


def coarser(found: QuantizedEdge) -> Coarser | None:
    """Return what reading a pair as symmetric INT8 costs it; None where that costs nothing, or is not known."""
    amax = amax_of(found)
    if amax is None or found.scales is None or is_symmetric(found) or levels_of(found) is None:
        return None
    zero = 0 if found.zero_points is None else int(found.zero_points.flat[0])
    return Coarser(found.edge.read, type_of(found), zero, float(found.scales.max()), float(amax.max()) / INT8_LEVELS)
