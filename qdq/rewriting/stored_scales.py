"""Scales in the type that a file stores them in: that of the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qdq.arrays import Floats
from qdq.quantizer import ElementType

#: The smallest float32, and bfloat16, that no GPU flushes to 0.
_LEAST_NORMAL = np.finfo(np.float32).tiny

_LARGEST_HALF = float(np.finfo(np.float16).max)

#: The smallest float16 above 0, 2**-24. Every float16 is a multiple of it, so it is the finest
#: step that a float16 tensor can need.
_LEAST_HALF = np.finfo(np.float16).smallest_subnormal

#: The largest share that rounding may take from a range: half a step of INT8. A float16 of
#: normal size takes 0.05 %, a subnormal one up to half.
_LARGEST_LOSS = 1 / 256


def store_scales(
    scales: Sequence[float], element: ElementType, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return the scales of a pair as a vector of a tensor's type: float32, float16 or bfloat16.

    TensorRT-RTX 1.7.1 and ONNX Runtime compute exactly with subnormal float16 scales: RTX folds
    weights with them without an error, multiplies their products in float32, and divides by a
    scale whose inverse no float16 holds.
    """
    if dtype == np.float16:
        return _round_to_half(np.array(scales, np.float64), element)
    return np.maximum(np.array(scales, np.float32), _LEAST_NORMAL).astype(dtype)


def _round_to_half(scales: Floats, element: ElementType) -> npt.NDArray[np.float16]:
    """Return the nearest float16 to each scale, with two exceptions.

    The next larger one where the nearest would clip, and the largest one at which every value of
    the type dequantizes to a finite float16.
    """
    largest_scale = _round_down(_LARGEST_HALF / element.largest)
    rounded = np.minimum(scales, largest_scale).astype(np.float16)
    is_clipping = rounded < np.minimum(scales, largest_scale) * (1 - _LARGEST_LOSS)
    larger = np.nextafter(rounded, np.float16(np.inf))
    return np.maximum(np.where(is_clipping, larger, rounded), _LEAST_HALF)


def _round_down(value: float) -> np.float16:
    """Return the largest float16 up to a positive value."""
    nearest = np.float16(value)
    return nearest if float(nearest) <= value else np.nextafter(nearest, np.float16(0))
