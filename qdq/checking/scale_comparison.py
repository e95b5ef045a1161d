"""The scales of pairs compared: their axis, their number and their values."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from qdq.arrays import Array
from qdq.graph.index import GraphIndex
from qdq.quantized.model import QuantizedEdge, largest_scale

#: Scales that differ by a smaller share are equal.
_SCALE_TOLERANCE = 1e-3


def pair_scale_axis(pair: QuantizedEdge, scope: GraphIndex) -> int | None:
    """Return the axis along which a pair has scales, None for one scale."""
    scales = pair.scales
    if scales is None or scales.ndim == 0:
        return None
    if scales.size == 1 and pair.pair.axis is None:
        return None
    axis = 1 if pair.pair.axis is None else pair.pair.axis
    if axis < 0:
        axis += scope.rank(pair.edge.tensor) or 0
    return axis


def are_positive(scales: Array) -> bool:
    """Whether all scales are finite and above 0."""
    if scales.dtype != np.float32 or not scales.size:
        return bool((scales > 0).all() and np.isfinite(scales.astype(np.float64)).all())
    if scales.size == 1:  # most pairs: numpy's reductions cost fifty times as much as this
        return 0.0 < float(scales.item()) < math.inf
    return bool(scales.min() > 0.0 and scales.max() < math.inf)  # a NaN is the least


def has_one_scale(pair: QuantizedEdge) -> bool:
    """Whether a pair has a single, constant scale."""
    return pair.scales is not None and pair.scales.size == 1


def have_equal_scales(pairs: Iterable[QuantizedEdge]) -> bool:
    """Whether the largest scales of some pairs are equal."""
    scales = [largest_scale(pair.scales) for pair in pairs]
    return not scales or bool(np.ptp(scales) <= _SCALE_TOLERANCE * max(scales))
