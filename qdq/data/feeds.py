"""Samples for calibration and validation: files, pictures, scripts, iterables, or noise."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias, cast

import msgspec
import numpy as np

from qdq.arguments import to_count, to_path
from qdq.arrays import Array, Feed
from qdq.data.images import Images, list_pictures, open_pictures
from qdq.data.input_specs import (
    Indexed,
    InputSpec,
    Named,
    Sample,
    Series,
    Specs,
    Streamed,
    check_array,
    input_specs,
    read_array,
)
from qdq.data.labels import LABELS_OFF, label_files
from qdq.data.preprocessing import preprocess_path
from qdq.data.sample_files import DATA_FORMS, list_sample_files, open_arrays, open_series
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.memory import exceeds_memory, format_gigabytes
from qdq.printable import encodable_name

NOISE = "noise"
_NOISE_SAMPLES = 8
_LIBRARY = "samples passed to the library"


class Subset(msgspec.Struct, frozen=True):
    """At most so many samples of some data.

    Without a seed they are spread evenly over data whose number of samples is known, and the first
    ones of scripts, iterables and Polygraphy's JSON. With a seed they are a random choice, which is
    the same whenever the data is.
    """

    data: DataLike
    #: None for all.
    samples: int | None = None
    #: The seed of the choice; for noise, of its values.
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None:
            to_count(self.samples, 1, "Subset.samples")
        if self.seed is not None:
            to_count(self.seed, 0, "Subset.seed")


#: A path, the word "noise", a folder of pictures, any iterable of samples, or a subset of these.
#: Also an array, or one for each input: axis 0 counts their samples.
DataLike: TypeAlias = str | Path | Images | Subset | Array | Mapping[str, Array] | Iterable[Sample]

#: Yields the samples from the first argument on, every n-th for the second argument n.
SampleReader = Callable[[int, int], Iterator[Named]]


class FeedSample(msgspec.Struct, frozen=True):
    """A sample whose inputs are checked, with the arrays that are no inputs of the model."""

    #: Its source, such as a file and a number.
    name: str
    #: The arrays of the inputs.
    feed: Feed
    #: All arrays as they were read, those of the inputs among them.
    source_arrays: Sample

    def read_arrays(self) -> Feed:
        """Return the inputs and the other arrays, such as labels.

        Raises DataError for an array that cannot be read.
        """
        arrays: Feed = {}
        for name in self.source_arrays:
            if name not in self.feed:
                arrays[str(name)] = read_array(self.source_arrays, name, "array", self.name)
        return arrays | self.feed


class Feeds:
    """Samples that fit a model's inputs, checked as they are read.

    They can be iterated any number of times, unless they come from an iterator.
    """

    def __init__(
        self, name: str, specs: Specs, read: SampleReader, count: int | None, once: bool = False
    ) -> None:
        #: A name of the data for reports: a file name, or "noise".
        self.name = encodable_name(name)
        self.specs = specs
        #: The number of samples, or None where only reading them tells.
        self.count = count
        #: Whether they can be iterated only once.
        self.once = once
        self._read = read
        self._remaining: Iterator[Named] | None = None
        #: Sizes of axis 0 of the samples read so far; 0 where the inputs of a sample differ in it.
        self.sizes: set[int] = set()

    def __iter__(self) -> Iterator[Feed]:
        """Yield each sample as arrays by input name.

        Raises DataError naming the file and the input.

        Samples that can be iterated only once are refused the second time.
        """
        return (feed for _, feed in self.named())

    def named(self, start: int = 0, step: int = 1) -> Iterator[tuple[str, Feed]]:
        """Yield samples with their source: from `start` on, every `step`-th."""
        return ((sample.name, sample.feed) for sample in self.samples(start, step))

    def samples(self, start: int = 0, step: int = 1) -> Iterator[FeedSample]:
        """Yield samples with all of their arrays: from `start` on, every `step`-th."""
        count = 0
        for source, arrays in self._samples_from(start, step):
            count += 1
            feed = {spec.name: check_array(spec, arrays, source) for spec in self.specs}
            self._add_size(feed)
            yield FeedSample(source, feed, arrays)
        if not count and not start:
            fix = "A generator is used up after one run: pass a list." if self.once else DATA_FORMS
            raise DataError(f"{self.name}: the data holds no samples. {fix}")
        if self.once:
            self._remaining = _refuse_again(self.name)

    def _samples_from(self, start: int, step: int) -> Iterator[Named]:
        if not self.once:
            return self._read(start, step)
        if self._remaining is None:
            self._remaining = self._read(0, 1)
        return islice(self._remaining, start, None, step)

    def _add_size(self, feed: Feed) -> None:
        sizes = {len(values) for values in feed.values() if values.ndim > 1}
        self.sizes.add(sizes.pop() if len(sizes) == 1 else 0)

    def first(self) -> Feed:
        """Return the first sample."""
        sample = next(self.samples())
        if self._remaining is not None:
            self._remaining = chain([(sample.name, sample.source_arrays)], self._remaining)
        return sample.feed

    def left(self, start: int, step: int) -> int | None:
        """Return how many samples `named` yields, or None where only reading them tells."""
        return None if self.count is None else len(range(start, self.count, step))


def _refuse_again(name: str) -> Iterator[Named]:
    raise DataError(
        f"{name}: the samples can be iterated only once, and are needed again. "
        "Pass a list, or an object whose __iter__ starts again."
    )
    yield "", {}


def open_feeds(index: GraphIndex, data: DataLike | None, batch: int | None = None) -> Feeds:
    """Return the samples of some data, cut to the model's batch (or `batch` where it is dynamic).

    Raises DataError where there is nothing to read. Samples are checked when they are read.
    """
    specs = input_specs(index)
    if batch is not None:
        batch = to_count(batch, 1, "batch")
    if data is None:
        raise DataError(
            f"{index.source.name}: there is no calibration data. {DATA_FORMS} "
            "'--data noise' is only for trying things out."
        )
    subset = data if isinstance(data, Subset) else Subset(data)
    _check_batch(index, specs, batch)
    if isinstance(subset.data, str) and subset.data == NOISE:
        return _noise_feeds(specs, batch or 1, subset)
    series = _open_series(index, subset.data, specs, batch)
    if isinstance(series, Indexed):
        return _indexed_feeds(series, specs, subset)
    return _streamed_feeds(series, specs, subset)


def _open_series(index: GraphIndex, data: DataLike, specs: Specs, batch: int | None) -> Series:
    if isinstance(data, Images):
        return open_pictures(data, specs, batch, index.source.name)
    if isinstance(data, (str, os.PathLike)):
        return open_series(str(to_path(data, "data")), specs, batch)
    if hasattr(data, "__array__") or isinstance(data, Mapping):
        return open_arrays(_LIBRARY, data, specs, batch)
    has_length = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if has_length and not isinstance(data, bytes):
        samples = cast("Sequence[Sample]", data)  # torch's Dataset has no more than these two
        return Indexed(_LIBRARY, len(samples), lambda i: (f"sample {i}", samples[i]))
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        raise DataError(
            f"{_LIBRARY}: they are of type {type(data).__name__}. "
            "Pass a path, an array, a dict of arrays, or an iterable of dicts of arrays."
        )
    return Streamed(_LIBRARY, lambda: _name_samples(data), once=iter(data) is data)


def _name_samples(samples: Iterable[Sample]) -> Iterator[Named]:
    return ((f"sample {i}", sample) for i, sample in enumerate(samples))


def _reader_from_start(read: Callable[[], Iterator[Named]]) -> SampleReader:
    """Return a reader of samples that can only be read from the first on."""
    return lambda start, step: islice(read(), start, None, step)


def _noise_feeds(specs: Specs, batch: int, subset: Subset) -> Feeds:
    count = subset.samples or _NOISE_SAMPLES
    seed = subset.seed or 0
    read = _reader_from_start(lambda: _make_noise(specs, batch, count, seed))
    return Feeds(NOISE, specs, read, count)


def _indexed_feeds(series: Indexed, specs: Specs, subset: Subset) -> Feeds:
    chosen = _choose_samples(series.count, subset.samples, subset.seed)
    name = _subset_name(series.name, subset, series.count)
    return Feeds(name, specs, lambda start, step: map(series.at, chosen[start::step]), len(chosen))


def _subset_name(name: str, subset: Subset, count: int) -> str:
    """Return the name of the data with the choice from it."""
    if subset.samples is None or subset.samples >= count:
        return name
    choice = "evenly" if subset.seed is None else f"by seed {subset.seed}"
    return f"{name}, {subset.samples} of {count} {choice}"


def _choose_samples(count: int, requested: int | None, seed: int | None) -> Sequence[int]:
    """Return the positions of the chosen samples among `count`, in order."""
    if requested is None or requested >= count:
        return range(count)
    if seed is None:
        return [(2 * i + 1) * count // (2 * requested) for i in range(requested)]
    generator = np.random.default_rng(seed)
    return sorted(generator.choice(count, requested, replace=False).tolist())


def _streamed_feeds(series: Streamed, specs: Specs, subset: Subset) -> Feeds:
    if subset.samples is None:
        return Feeds(series.name, specs, _reader_from_start(series.read), None, series.once)
    if subset.seed is None:
        name = f"{series.name}, at most the first {subset.samples}"
        read_first = _reader_from_start(lambda: islice(series.read(), subset.samples))
        return Feeds(name, specs, read_first, None, series.once)
    if series.once:
        raise DataError(
            f"{series.name}: the samples can be iterated only once, and a seed needs their number. "
            "Pass a list, or no seed."
        )

    def read_chosen() -> Iterator[Named]:
        count = sum(1 for _ in series.read())
        chosen = set(_choose_samples(count, subset.samples, subset.seed))
        return (named for i, named in enumerate(series.read()) if i in chosen)

    name = f"{series.name}, at most {subset.samples} by seed {subset.seed}"
    return Feeds(name, specs, _reader_from_start(read_chosen), None)


def with_absolute_paths(data: DataLike | None) -> DataLike | None:
    """Return the same data with paths that hold in any working directory."""
    if isinstance(data, Subset):
        return msgspec.structs.replace(data, data=with_absolute_paths(data.data))
    if isinstance(data, Images):
        file = Path(data.preprocess)
        preprocess = file.resolve() if file.is_file() else data.preprocess
        labels = data.labels
        if labels is not None and labels != LABELS_OFF:
            labels = Path(labels).resolve()
        return Images(Path(data.folder).resolve(), preprocess, labels)
    if isinstance(data, (str, os.PathLike)) and str(data) != NOISE:
        return str(Path(data).resolve())
    return data


def data_files(data: DataLike | None) -> tuple[Path, ...]:
    """Return the files that data is read from: none of them may be an output."""
    if isinstance(data, Subset):
        return data_files(data.data)
    if isinstance(data, Images):
        files = (*list_pictures(Path(data.folder)), preprocess_path(data.preprocess))
        return (*files, *label_files(data.labels))
    if not isinstance(data, (str, os.PathLike)) or str(data) in ("", NOISE):
        return ()
    return list_sample_files(str(data))


def _check_batch(index: GraphIndex, specs: Specs, batch: int | None) -> None:
    """Raise DataError for a `--batch` that differs from the batch that all inputs fix."""
    fixed = {spec.shape[0] if spec.shape else None for spec in specs}
    if batch and fixed and None not in fixed and batch not in fixed:
        raise DataError(
            f"{index.source.name}: the model's batch is fixed at {specs[0].shape[0]}, "
            f"--batch {batch} cannot change it. Remove --batch."
        )


def _make_noise(specs: Specs, batch: int, count: int, seed: int) -> Iterator[Named]:
    generator = np.random.default_rng(seed)
    for i in range(count):
        sample = {spec.name: _make_random(generator, spec, batch) for spec in specs}
        yield f"noise sample {i}", sample


def _make_random(generator: np.random.Generator, spec: InputSpec, batch: int) -> Array:
    defaults = (batch, *(1 for _ in spec.shape[1:]))
    shape = tuple(size or default for size, default in zip(spec.shape, defaults, strict=False))
    _require_memory(spec, shape)
    if np.dtype(spec.dtype).kind == "f":
        return generator.standard_normal(shape).astype(spec.dtype)
    return generator.integers(0, 2, shape).astype(spec.dtype)


def _require_memory(spec: InputSpec, shape: tuple[int, ...]) -> None:
    """Raise DataError for an input that the machine's memory cannot hold."""
    size = math.prod(shape) * np.dtype(np.float64).itemsize
    if exceeds_memory(size):
        raise DataError(
            f"{NOISE}: input {spec.name!r} ({spec}) takes {format_gigabytes(size)}, more than the "
            "memory of this machine. Pass a smaller model or other data."
        )
