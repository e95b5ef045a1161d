"""The ranges of channels that follow from weights alone, for use without data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qdq.arrays import Floats
from qdq.graph.equalized_weights import map_stored_tensors, read_scalable_values, split_groups
from qdq.recovery.channel_flow import ChannelFlow, WeightChannels
from qdq.recovery.channel_layout import ChannelLayout
from qdq.recovery.channel_statistics import ChannelStatistics

#: The ratio of a channel's range to its deviation.
_DEVIATIONS = 3.0


def estimate_channels(
    flow: ChannelFlow, layouts: Mapping[str, ChannelLayout]
) -> dict[str, ChannelStatistics]:
    """Return the statistics of tensors whose ranges are those of the weights that compute them.

    A channel's range is the largest weight of its output channel (arXiv:1906.04721, section 4.1).
    """
    stored = map_stored_tensors(flow.index.graph)
    ranges: dict[int, float] = {}
    for weight in flow.weights:
        if not weight.is_producer:
            continue
        values = np.abs(read_scalable_values(stored[weight.tensor]))
        largest = _reduce(values, weight)
        for root, value in zip(flow.classes.roots(weight.channels), largest, strict=True):
            ranges[int(root)] = max(float(value), ranges.get(int(root), 0.0))
    statistics: dict[str, ChannelStatistics] = {}
    for tensor, layout in layouts.items():
        roots = flow.classes.roots(layout.channels).tolist()
        amax: Floats = np.array([ranges.get(root, 0.0) for root in roots])
        statistics[tensor] = ChannelStatistics(amax, (amax / _DEVIATIONS) ** 2)
    return statistics


def _reduce(values: Floats, weight: WeightChannels) -> Floats:
    """Return the largest value of each channel of a weight."""
    view = split_groups(values, weight.groups)
    kept = (0, weight.axis + 1) if weight.groups > 1 else (weight.axis,)
    reduced = tuple(axis for axis in range(view.ndim) if axis not in kept)
    largest: Floats = view.max(axis=reduced, initial=0.0).ravel()
    return largest
