"""The choice of the exponents of channels by the noise that they are predicted to leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qdq.arrays import Floats
from qdq.graph.equalized_weights import Exponents
from qdq.recovery.layer_noise import LayerNoise

#: The shares of the ranges of activations, against those of weights (alpha of SmoothQuant).
_ACTIVATION_SHARES = tuple(share / 10 for share in range(11))

#: The most that all channels are moved to lie between the bounds, or beside channels of factor 1.
_LARGEST_SHIFT = 6

_SHIFTS = tuple(sorted(range(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1), key=abs))

#: A candidate replaces an earlier one where its noise is less than this share of the other's.
_LEAST_IMPROVEMENT = 0.99

#: Smaller ranges, relative to the largest of a tensor, count as this: samples may have missed some.
_LEAST_RANGE = 2.0**-9


def choose_exponents(
    layers: Sequence[LayerNoise], least: Exponents, most: Exponents
) -> tuple[Exponents, float]:
    """Return the exponent of each class with the least predicted noise, and the gain in decibels.

    The candidates are SmoothQuant's factors for several shares (arXiv:2211.10438, equation 4),
    rounded to powers of two. The gain is 0 where no factors are better than all 1.
    """
    best = np.zeros(least.size, np.int32)
    unscaled_noise = _predict(layers, best)
    noise = unscaled_noise
    for candidate in _list_candidates(layers, least, most):
        candidate_noise = _predict(layers, candidate)
        if candidate_noise < _LEAST_IMPROVEMENT * noise:
            best, noise = candidate, candidate_noise
    if noise <= 0.0:
        return np.zeros_like(best), 0.0
    return best, 10.0 * float(np.log10(unscaled_noise / noise))


def _predict(layers: Sequence[LayerNoise], exponents: Exponents) -> float:
    return sum(layer.predict(exponents) for layer in layers)


def _list_candidates(
    layers: Sequence[LayerNoise], least: Exponents, most: Exponents
) -> Iterator[Exponents]:
    """Yield the factors of each share, moved by several powers of two.

    A move of all channels changes no noise, and is not tried twice.
    """
    data_ranges = _join_ranges(layers, [layer.amax for layer in layers], least.size)
    weight_ranges = _join_ranges(layers, [layer.largest_weights for layer in layers], least.size)
    is_used = (data_ranges > 0.0) & (weight_ranges > 0.0)
    is_used[0] = False
    if not is_used.any():
        return
    data_logs = np.log2(np.maximum(data_ranges, _LEAST_RANGE))
    weight_logs = np.log2(np.maximum(weight_ranges, _LEAST_RANGE))
    read_classes = np.unique(np.concatenate([layer.classes for layer in layers]))
    can_move_all = bool(is_used[read_classes].all())
    for share in _ACTIVATION_SHARES:
        logs = (1.0 - share) * weight_logs - share * data_logs
        centered = np.rint(logs - np.median(logs[is_used]))
        moved_freely = False
        for shift in _SHIFTS:
            exponents = np.where(is_used, centered + shift, 0)
            bounded = np.clip(exponents, least, most)
            is_free = can_move_all and np.array_equal(exponents, bounded)
            if is_free and moved_freely:
                continue
            moved_freely |= is_free
            yield bounded.astype(np.int32)


def _join_ranges(
    layers: Sequence[LayerNoise], ranges: Sequence[Floats], class_count: int
) -> Floats:
    """Return the largest range of each class, relative to that of the layer."""
    joined = np.zeros(class_count)
    for layer, of_channel in zip(layers, ranges, strict=True):
        largest = float(of_channel.max(initial=0.0))
        if largest > 0.0:
            np.maximum.at(joined, layer.classes, of_channel / largest)
    return joined


def limit_by_largest_channel(layers: Sequence[LayerNoise], class_count: int) -> Exponents:
    """Return the largest exponents with which no channel exceeds the largest of its tensor.

    float16 values would overflow beyond it.
    """
    data_ranges = _join_ranges(layers, [layer.amax for layer in layers], class_count)
    is_used = data_ranges > 0.0
    headroom = -np.log2(np.where(is_used, data_ranges, 1.0))
    return np.floor(headroom).astype(np.int32)
