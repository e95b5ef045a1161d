"""Which part of the error of activations is clipping, from their histograms and scales alone."""

from __future__ import annotations

import numpy as np

from qdq.calibration.scales import Scales
from qdq.quantizer import ElementType
from qdq.ranges.histogram import BINS, Histogram
from qdq.ranges.tensor_ranges import Ranges
from qdq.sensitivity.layer_groups import LayerGroup


class ClippingShares:
    """The shares of clipping for the groups of one plan."""

    def __init__(self, ranges: Ranges, scales: Scales) -> None:
        self._histograms = {item.tensor: item.histogram for item in ranges.by_tensor}
        self._scales = {(item.tensor, item.quantizer): item.scales for item in scales.by_pair}

    def find_share(self, group: LayerGroup) -> float | None:
        """Return the share of clipping in the errors of a group's activations.

        The square error of each activation counts relative to the energy of its values. None where
        no histogram was observed, or nothing differs.
        """
        clipping, total = 0.0, 0.0
        pairs: dict[tuple[str, str], float] = {}
        elements: dict[str, ElementType] = {}
        for placement in group.placements:
            quantizer = placement.quantizer
            if quantizer.calibrated:
                tensor = placement.edge.qualified_tensor
                pairs[tensor, quantizer.dtype] = self._scales[tensor, quantizer][0]
                elements[quantizer.dtype] = quantizer.element
        for (tensor, dtype), scale in pairs.items():
            histogram = self._histograms.get(tensor)
            if histogram is not None and histogram.amax > 0.0:
                clipped, error = _measure_errors(histogram, scale, elements[dtype])
                clipping += clipped
                total += error
        return clipping / total if total > 0.0 else None


def _measure_errors(
    histogram: Histogram, scale: float, element: ElementType
) -> tuple[float, float]:
    """Return the square error of clipped values, and of all, relative to the values' energy.

    A value is clipped where it is more than half a step beyond the largest one of the type.
    """
    counts = histogram.counts
    values = (np.arange(BINS) + 0.5) * 2.0**histogram.exponent
    rounded = element.round(values / scale) * scale
    errors = counts * (values - rounded) ** 2
    largest = np.array([float(element.largest)])
    half_step = float(element.error(largest)[0])
    is_clipped = values > scale * (element.largest + half_step)
    energy = float(counts @ values**2)
    return float(errors[is_clipped].sum()) / energy, float(errors.sum()) / energy
