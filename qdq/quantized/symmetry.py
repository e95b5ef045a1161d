"""A pair of any integer type, with any zero point, read as TensorRT's: symmetric, one range, zero point 0."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.quantized.model import QuantizedEdge
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8, INT8_LEVELS, integer_levels

#: Steps that grow by less are those of one level at the end of the range.
_NOTICED = 1.01


class CoarserActivation(msgspec.Struct, frozen=True):
    """An activation whose symmetric INT8 steps are larger than the steps it had."""

    tensor: str
    #: The type that it had, and its zero point.
    dtype: str
    zero_point: int
    scale: float
    #: The scale of the symmetric pair in its place.
    symmetric_scale: float

    @property
    def step_ratio(self) -> float:
        """How many times as large the steps are: the noise of rounding grows by 20 log10 of it, in dB."""
        return self.symmetric_scale / self.scale


def pair_type(found: QuantizedEdge) -> str:
    """Return the type of the integers, or 8-bit floats, of a pair: what its zero point says, else what is stored, else INT8 as TensorRT reads it."""
    return (
        found.dtype
        or found.stored
        or (INT8 if found.pair.levels is None or found.pair.levels[0] < 0 else "uint8")
    )


def pair_levels(found: QuantizedEdge) -> tuple[int, int] | None:
    """Return the least and largest integer that a pair holds; None for a type that is none of integers."""
    return found.pair.levels or integer_levels(
        getattr(onnx.TensorProto, pair_type(found).upper(), 0)
    )


def pair_amax(found: QuantizedEdge) -> Array | None:
    """Return the largest absolute value that a pair lets through, for each of its scales; None where it is not known.

    The lowest integer is left out, as symmetric INT8 leaves out -128, so that INT8 with zero point 0 keeps its scale exactly.
    """
    if found.scales is None or (found.pair.zero_point and found.zero_points is None):
        return None
    scales, levels = found.scales.astype(np.float32).astype(np.float64), pair_levels(found)
    if levels is None:
        element = ELEMENT_TYPES.get(pair_type(found))
        return None if element is None else scales * element.largest
    zero = np.zeros(()) if found.zero_points is None else found.zero_points.astype(np.float64)
    if not scales.size or zero.size not in (1, scales.size):
        return None
    amax: Array = np.maximum(levels[1] - zero, zero - levels[0] - 1) * scales
    return amax


def is_symmetric(found: QuantizedEdge) -> bool:
    """Whether INT8 with zero point 0 holds every value of a pair at the same scale."""
    levels = pair_levels(found)
    if levels is None or (found.pair.zero_point and found.zero_points is None):
        return False
    zero = np.zeros(()) if found.zero_points is None else found.zero_points.astype(np.int64)
    return bool(
        (levels[0] - zero >= -INT8_LEVELS - 1).all() and (levels[1] - zero <= INT8_LEVELS).all()
    )


def exact_weight_amax(found: QuantizedEdge) -> Array | None:
    """Return the ranges at which symmetric INT8 holds every value of a weight's pair exactly; None where it cannot, or is not known.

    A negative scale gives the same values as its absolute with all signs turned.
    """
    if found.scales is None or not (is_symmetric(found) or pair_type(found) == E4M3):
        return None
    return np.abs(found.scales.astype(np.float32).astype(np.float64)) * (
        ELEMENT_TYPES[E4M3].largest if pair_type(found) == E4M3 else INT8_LEVELS
    )


def measure_coarsening(found: QuantizedEdge) -> CoarserActivation | None:
    """Return what reading a pair as symmetric INT8 costs it; None where that costs nothing, or is not known."""
    amax = pair_amax(found)
    if (
        amax is None
        or found.scales is None
        or pair_levels(found) is None
        or not amax.max(initial=0) > _NOTICED * INT8_LEVELS * float(found.scales.max())
    ):
        return None
    zero = 0 if found.zero_points is None else int(found.zero_points.flat[0])
    return CoarserActivation(
        found.edge.qualified_tensor,
        pair_type(found),
        zero,
        float(found.scales.max()),
        float(amax.max()) / INT8_LEVELS,
    )
