"""The ranges that a scale in float32 can hold, and the refusal of others."""

from __future__ import annotations

import numpy as np

from qdq.errors import DataError
from qdq.quantizer import INT8_LEVELS

#: The largest amax that is accepted: that of the largest float32 scale.
LARGEST_AMAX = INT8_LEVELS * float(np.finfo(np.float32).max)

#: The least amax above 0 that a file or a caller may state. The scale of a smaller one is denormal
#: in float32: no calibration gives it, but a number that was cut off may.
LEAST_AMAX = 1e-36


def require_range(amax: float, location: str) -> None:
    """Raise DataError unless a range is a number from 0 to `LARGEST_AMAX`."""
    if not 0.0 <= amax <= LARGEST_AMAX:
        raise DataError(
            f"{location}: a range of {amax:g} cannot be used. "
            "Write a finite number above 0, or 0 for a tensor of zeros."
        )


def require_stated_range(amax: float, location: str) -> None:
    """Raise DataError unless a range is 0, or a number from `LEAST_AMAX` to `LARGEST_AMAX`."""
    require_range(amax, location)
    if 0.0 < amax < LEAST_AMAX:
        raise DataError(
            f"{location}: a range of {amax:g} is too small for a scale in float32. "
            "Write 0 for a tensor of zeros."
        )
