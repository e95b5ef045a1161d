"""The largest value and the mean square of each channel of some tensors, over samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from qdq.arrays import Array, Feed, Floats
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.observers.observer import DEFAULT_RUN, RunSettings, open_observing_session
from qdq.runtime.session import run_sample


class ChannelStatistics(msgspec.Struct, frozen=True, eq=False):
    """What samples show of the channels of one tensor, each as a vector."""

    #: The largest absolute value, as the mean over the samples: calibration clips rare values.
    amax: Floats
    #: The mean of the squares.
    mean_square: Floats


def measure_channels(
    index: GraphIndex,
    axes: Mapping[str, int],
    samples: Iterable[Feed],
    settings: RunSettings = DEFAULT_RUN,
) -> dict[str, ChannelStatistics]:
    """Return the statistics of the channels of tensors of the main graph; `axes` has their axes.

    One session of the float model runs the samples. Raises DataError without samples, for values
    that are not finite, and where ONNX Runtime fails on a sample, and ModelError where it rejects
    the model.
    """
    names = sorted(axes)
    session = open_observing_session(index, names, settings)
    sums: dict[str, _ChannelSums] = {}
    for feed in samples:
        for name, values in run_sample(session, index, names, feed)[: len(names)]:
            channels = np.moveaxis(values, axes[name], 0)
            flat = channels.reshape(len(channels), -1)
            sums.setdefault(name, _ChannelSums(name, len(flat))).add(flat)
    if len(sums) < len(names):
        raise DataError(f"{index.source.name}: there are no samples. Pass some.")
    return {name: channel_sums.result() for name, channel_sums in sums.items()}


class _ChannelSums:
    """Running statistics of the channels of one tensor."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._sum_of_amax = np.zeros(count)
        self._samples = 0
        self._squares = np.zeros(count)
        self._values = 0

    def add(self, channels: Array) -> None:
        """Add the values of a sample as [channel, value]."""
        if not channels.size:
            return
        largest = np.maximum(channels.max(axis=1), -channels.min(axis=1))
        if len(channels) != self._squares.size or not np.isfinite(largest).all():
            raise DataError(
                f"a sample: tensor {self._name!r} has values that are not finite, or another number"
                " of channels than before. Check the data."
            )
        self._sum_of_amax += largest
        self._samples += 1
        self._squares += np.einsum("cv,cv->c", channels, channels, dtype=np.float64)
        self._values += channels.shape[1]

    def result(self) -> ChannelStatistics:
        """Return the statistics so far."""
        amax = self._sum_of_amax / max(self._samples, 1)
        return ChannelStatistics(amax, self._squares / max(self._values, 1))
