"""A pair of any type and zero point as TensorRT's: symmetric, with zero point 0."""

from __future__ import annotations

import msgspec
import numpy as np
from onnx import TensorProto

from qdq.arrays import Array
from qdq.quantized.model import QuantizedEdge
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8, INT8_LEVELS, integer_levels

#: Steps that grow by a smaller factor differ by one level at the end of the range.
_NOTICED = 1.01


class CoarserActivation(msgspec.Struct, frozen=True):
    """An activation whose symmetric INT8 steps are larger than its original steps."""

    #: The activation.
    tensor: str
    #: The original type and zero point.
    dtype: str
    #: The zero point of its pair.
    zero_point: int
    #: The scale of its pair.
    scale: float
    #: The scale of the symmetric pair in its place.
    symmetric_scale: float

    @property
    def step_ratio(self) -> float:
        """The growth of the steps: rounding noise grows by 20 log10 of it, in dB."""
        return self.symmetric_scale / self.scale


def pair_type(quantized_edge: QuantizedEdge) -> str:
    """Return the type of a pair's integers or 8-bit floats.

    It is the type of the zero point, else of the stored values, else INT8 as TensorRT reads it.
    """
    if quantized_edge.dtype:
        return quantized_edge.dtype
    if quantized_edge.stored:
        return quantized_edge.stored
    levels = quantized_edge.pair.levels
    return INT8 if levels is None or levels[0] < 0 else "uint8"


def pair_levels(quantized_edge: QuantizedEdge) -> tuple[int, int] | None:
    """Return the least and the largest integer of a pair, None for a floating-point type."""
    if quantized_edge.pair.levels:
        return quantized_edge.pair.levels
    type_name = pair_type(quantized_edge).upper()
    return integer_levels(getattr(TensorProto, type_name, 0))


def pair_amax(quantized_edge: QuantizedEdge) -> Array | None:
    """Return the largest absolute value of a pair's range for each scale; None where unknown.

    The lowest integer does not count, as symmetric INT8 does not use -128: INT8 with zero point 0
    keeps its scale exactly.
    """
    scales = quantized_edge.scales
    if scales is None or not _has_known_zero_point(quantized_edge):
        return None
    exact_scales = scales.astype(np.float32).astype(np.float64)
    levels = pair_levels(quantized_edge)
    if levels is None:
        element = ELEMENT_TYPES.get(pair_type(quantized_edge))
        return None if element is None else exact_scales * element.largest
    zero_points = _zero_points(quantized_edge).astype(np.float64)
    if not scales.size or (zero_points.size != 1 and zero_points.shape != scales.shape):
        return None
    least, largest = levels
    if zero_points.size == 1:
        zero_points = zero_points.reshape(())
    upper = largest - zero_points
    lower = zero_points - least - 1
    amax: Array = np.maximum(upper, lower) * exact_scales
    return amax


def _has_known_zero_point(quantized_edge: QuantizedEdge) -> bool:
    """Whether a pair has a stored zero point, or none."""
    return not quantized_edge.pair.zero_point or quantized_edge.zero_points is not None


def _zero_points(quantized_edge: QuantizedEdge) -> Array:
    zero_points = quantized_edge.zero_points
    return np.zeros(()) if zero_points is None else zero_points


def is_symmetric(quantized_edge: QuantizedEdge) -> bool:
    """Whether INT8 with zero point 0 represents every value of a pair at the same scale."""
    levels = pair_levels(quantized_edge)
    if levels is None or not _has_known_zero_point(quantized_edge):
        return False
    zero_points = _zero_points(quantized_edge).astype(np.int64)
    least = levels[0] - zero_points
    largest = levels[1] - zero_points
    return bool((least >= -INT8_LEVELS - 1).all() and (largest <= INT8_LEVELS).all())


def exact_weight_amax(quantized_edge: QuantizedEdge) -> Array | None:
    """Return the ranges at which symmetric INT8 or FP8 represents a weight's pair exactly.

    None where it cannot, or where that is unknown. A negative scale counts as positive: it gives
    the same values with all signs changed.
    """
    if quantized_edge.scales is None:
        return None
    is_fp8 = pair_type(quantized_edge) == E4M3
    if not is_fp8 and not is_symmetric(quantized_edge):
        return None
    largest = ELEMENT_TYPES[E4M3].largest if is_fp8 else INT8_LEVELS
    exact_scales = quantized_edge.scales.astype(np.float32).astype(np.float64)
    return np.abs(exact_scales) * largest


def measure_coarsening(quantized_edge: QuantizedEdge) -> CoarserActivation | None:
    """Return the larger steps of a pair in symmetric INT8; None where they are equal or unknown."""
    amax = pair_amax(quantized_edge)
    scales = quantized_edge.scales
    if amax is None or scales is None or pair_levels(quantized_edge) is None:
        return None
    scale = float(scales.max())
    if not amax.max(initial=0) > _NOTICED * INT8_LEVELS * scale:
        return None
    zero_point = int(_zero_points(quantized_edge).flat[0])
    tensor = quantized_edge.edge.qualified_tensor
    symmetric_scale = float(amax.max()) / INT8_LEVELS
    return CoarserActivation(tensor, pair_type(quantized_edge), zero_point, scale, symmetric_scale)
