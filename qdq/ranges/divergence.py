"""The divergence of quantized from clipped distributions, for many ranges of one histogram.

The algorithm is the entropy calibrator of TensorRT (Migacz, 8-bit Inference with TensorRT, GTC
2017) in the form of pytorch-quantization.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qdq.arrays import Floats

_Integers: TypeAlias = npt.NDArray[np.int64]

#: No entropy range is below this many bins: pytorch-quantization's `start_bin`.
_FIRST_BIN = 128

#: The number of candidates whose levels are gathered at a time.
_BLOCK = 512

#: Far less than a bin, and more than the float64 error of a multiple of a bound.
_ROUNDING = 1e-9


def find_least_divergence_edge(counts: Floats, bounds: Floats) -> int:
    """Return the number of bins to keep for the least Kullback-Leibler divergence.

    `counts` are those of bins of equal width, the last one not empty. `bounds` are the limits of a
    type's levels as shares of its largest value. Of equal candidates the largest counts.
    """
    top = counts.size
    candidates = np.arange(min(_FIRST_BIN, top), top + 1)
    sums = _RunningSums(counts)
    blocks: list[Floats] = []
    for start in range(0, candidates.size, _BLOCK):
        block = candidates[start : start + _BLOCK]
        blocks.append(sums.measure(block, bounds))
    divergences = np.concatenate(blocks)
    from_end = int(np.argmin(divergences[::-1]))
    return int(candidates[divergences.size - 1 - from_end])


class _RunningSums:
    """Running sums over bins, from which the divergence follows for any number of kept bins."""

    def __init__(self, counts: Floats) -> None:
        self._counts = counts
        self._below = np.insert(np.cumsum(counts), 0, 0)
        self._filled = np.insert(np.cumsum(counts > 0), 0, 0)
        self._surprise = np.insert(np.cumsum(_times_log(counts, counts)), 0, 0)

    def measure(self, candidates: _Integers, bounds: Floats) -> Floats:
        """Return the divergence for each number of kept bins.

        It is infinite where the clipped values fall on an empty bin: the quantized distribution has
        nothing there.
        """
        tops = candidates[:, None]
        cuts = np.ceil(bounds * tops - _ROUNDING).astype(np.int64)
        sums, means = self._measure_levels(cuts)
        last_levels = (cuts < tops).sum(axis=1) - 1
        last_means = means[np.arange(candidates.size), last_levels]
        last = self._counts[candidates - 1]
        kept = self._below[candidates]
        total = self._below[-1]
        tail = total - kept
        clipped_last = last + tail
        clipped = self._surprise[candidates - 1] + _times_log(clipped_last, clipped_last)
        crossed = _times_log(sums, means).sum(axis=1)
        crossed = crossed + _times_log(tail, last_means)
        with np.errstate(divide="ignore", invalid="ignore"):
            divergences = (clipped - crossed) / total + np.log(kept / total)
        is_empty = (kept == 0.0) | ((last == 0.0) & (tail > 0.0))
        return np.where(is_empty, np.inf, divergences)

    def _measure_levels(self, cuts: _Integers) -> tuple[Floats, Floats]:
        """Return the sum of each level, and its mean over the bins that are not empty."""
        sums = np.diff(self._below[cuts], axis=1)
        sizes = np.diff(self._filled[cuts], axis=1)
        means = sums / np.maximum(sizes, 1)
        return sums, means


def _times_log(weights: Floats, values: Floats) -> Floats:
    """Return weights times the logarithm of values, 0 where a value is 0."""
    positive = np.where(values > 0, values, 1.0)
    products: Floats = weights * np.log(positive)
    return products
