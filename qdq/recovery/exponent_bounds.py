"""The exponents by which channels of stored weights can be scaled without losing a bit."""

from __future__ import annotations

import numpy as np

from qdq.arrays import Array
from qdq.graph.equalized_weights import LARGEST_EXPONENT, Exponents, split_groups


def bound_exponents(values: Array, axis: int, groups: int) -> tuple[Exponents, Exponents]:
    """Return the least and largest exponent for each channel along an axis.

    Nonzero values stay normal numbers. Both are 0 where a channel has values that are not finite.
    A channel with subnormal values is not made smaller.
    """
    channels = _list_channels(values, axis, groups)
    limits = np.finfo(values.dtype)
    magnitudes = np.abs(channels)
    nonzero = np.where(magnitudes > 0, magnitudes, limits.max)
    smallest = np.maximum(_exponent(nonzero.min(axis=1, initial=limits.max)), limits.minexp)
    largest = _exponent(magnitudes.max(axis=1, initial=0))
    least = np.clip(limits.minexp - smallest, -LARGEST_EXPONENT, 0)
    most = np.clip(limits.maxexp - 1 - largest, 0, LARGEST_EXPONENT)
    is_finite = np.isfinite(channels).all(axis=1)
    return (
        np.where(is_finite, least, 0).astype(np.int32),
        np.where(is_finite, most, 0).astype(np.int32),
    )


def _list_channels(values: Array, axis: int, groups: int) -> Array:
    """Return values as [channel, value]."""
    view = split_groups(values, groups)
    if groups == 1:
        view = np.moveaxis(view, axis, 0)
        return view.reshape(len(view), -1)
    view = np.moveaxis(view, axis + 1, 1)
    return view.reshape(view.shape[0] * view.shape[1], -1)


def _exponent(values: Array) -> Exponents:
    """Return the exponents of two of values in [1, 2) * 2**exponent, the least of all for 0."""
    exponents = np.frexp(values)[1] - 1
    return np.where(values > 0, exponents, -(1 << 12)).astype(np.int32)
