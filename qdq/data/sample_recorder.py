"""Samples that can be iterated only once, with the first of them kept for a second look."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from qdq.data.feeds import DataLike, Feeds, FeedSample, Subset, open_feeds
from qdq.data.input_specs import Sample
from qdq.graph.index import GraphIndex


class SampleRecorder:
    """An iterator over samples that keeps the first ones."""

    def __init__(self, samples: Iterator[Sample], count: int) -> None:
        self._samples = samples
        self._count = count
        #: The samples that were read, `count` at most.
        self.recorded: list[Sample] = []

    def __iter__(self) -> Iterator[Sample]:
        """Return itself, as iterators do."""
        return self

    def __next__(self) -> Sample:
        """Return the next sample."""
        sample = next(self._samples)
        if len(self.recorded) < self._count:
            self.recorded.append(sample)
        return sample


def record_samples(data: DataLike | None, count: int) -> DataLike | None:
    """Return the same data, with the first samples kept where it can be iterated only once."""
    if isinstance(data, Subset):
        return msgspec.structs.replace(data, data=record_samples(data.data, count))
    return SampleRecorder(data, count) if isinstance(data, Iterator) else data


def read_samples_again(
    index: GraphIndex, data: DataLike, batch: int | None, count: int | None
) -> list[FeedSample]:
    """Return some samples of data that was read before, spread over it where its size is known.

    None for all of them. Of data that can be iterated only once they are the recorded ones. The
    first half of them is spread over the data too.
    """
    feeds = open_feeds(index, repeatable_data(data), batch)
    samples = list(_spread(feeds, count))
    return samples if count is None else [*samples[::2], *samples[1::2]]


def repeatable_data(data: DataLike) -> DataLike:
    """Return data that can be read again: the recorded samples where the whole cannot."""
    inner = data.data if isinstance(data, Subset) else data
    return inner.recorded if isinstance(inner, SampleRecorder) else data


def _spread(feeds: Feeds, count: int | None) -> Iterator[FeedSample]:
    if count is None:
        yield from feeds.samples()
        return
    step = max(1, (feeds.count or 0) // count)
    for number, sample in enumerate(feeds.samples(0, step)):
        if number == count:
            return
        yield sample
