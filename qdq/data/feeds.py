"""Calibration and validation inputs: files, pictures, data-loader scripts, iterables, or noise by name; all of them or some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias, cast

import msgspec
import numpy as np

from qdq.arrays import Array, Feed
from qdq.data.images import Images, list_pictures, open_pictures, preprocess_path
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
)
from qdq.data.sample_files import DATA_FORMS, list_sample_files, open_series
from qdq.errors import DataError
from qdq.graph.index import GraphIndex

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
    #: For noise, what it is made from.
    seed: int | None = None


#: A path, the word "noise", a folder of pictures, any iterable of samples, or some samples of one of these.
DataLike: TypeAlias = str | Path | Images | Subset | Iterable[Sample]

#: Gives the samples from one on, each so many after the last.
Reader = Callable[[int, int], Iterator[Named]]


class Feeds:
    """Samples that fit a model's inputs, checked as they are read; can be gone through again and again, but for an iterator's."""

    def __init__(
        self, name: str, specs: Specs, read: Reader, count: int | None, once: bool = False
    ) -> None:
        #: What the data is, for reports: a file name, or "noise".
        self.name = name
        self.specs = specs
        #: How many samples there are, or None where only reading them tells.
        self.count = count
        #: Whether they can be gone through only once.
        self.once = once
        self._read = read
        self._begun: Iterator[Named] | None = None
        #: The sizes of axis 0 of the samples read so far; 0 where the inputs of a sample differ in it.
        self.sizes: set[int] = set()

    def __iter__(self) -> Iterator[Feed]:
        """Yield each sample as arrays by input name; raises DataError naming the file and the input.

        Samples that can be gone through only once are refused the second time.
        """
        return (feed for _, feed in self.named())

    def named(self, start: int = 0, step: int = 1) -> Iterator[tuple[str, Feed]]:
        """Yield samples with where they come from: those from `start` on, each `step` after the last."""
        read = 0
        for where, sample in self._from(start, step):
            read += 1
            feed = {spec.name: check_array(spec, sample, where) for spec in self.specs}
            sizes = {len(values) for values in feed.values() if values.ndim > 1}
            self.sizes.add(sizes.pop() if len(sizes) == 1 else 0)
            yield where, feed
        if not read and not start:
            raise DataError(
                f"{self.name}: holds no samples; {'a generator is used up after one run: pass a list' if self.once else DATA_FORMS}"
            )
        if self.once:
            self._begun = _used_up(self.name)

    def _from(self, start: int, step: int) -> Iterator[Named]:
        if not self.once:
            return self._read(start, step)
        if self._begun is None:
            self._begun = self._read(0, 1)
        return islice(self._begun, start, None, step)

    def first(self) -> Feed:
        """Return the first sample."""
        where, feed = next(self.named())
        if self._begun is not None:
            self._begun = chain([(where, feed)], self._begun)
        return feed

    def left(self, start: int, step: int) -> int | None:
        """Return how many samples `named` yields, or None where only reading them tells."""
        return None if self.count is None else len(range(start, self.count, step))


def _used_up(name: str) -> Iterator[Named]:
    raise DataError(
        f"{name}: can be gone through only once, and are needed again; pass a list, or an object whose __iter__ begins anew"
    )
    yield "", {}


def _sliced(read: Callable[[], Iterator[Named]]) -> Reader:
    """Return a reader of samples that can only be read from the first on."""
    return lambda start, step: islice(read(), start, None, step)


def open_feeds(index: GraphIndex, data: DataLike | None, batch: int | None = None) -> Feeds:
    """Return the samples that `data` names, cut to the model's batch (or `batch` where that is dynamic).

    Raises DataError where there is nothing to read; what is read is checked sample by sample.
    """
    specs = input_specs(index)
    some = data if isinstance(data, Subset) else Subset(data) if data is not None else None
    if some is None:
        raise DataError(
            f"{index.source.name}: no calibration data; {DATA_FORMS} ('--data noise' is only for trying things out)"
        )
    _check_batch(index, specs, batch)
    if some.data == NOISE:
        count = some.samples or _NOISE_SAMPLES
        return Feeds(
            NOISE, specs, _sliced(lambda: _noise(specs, batch or 1, count, some.seed or 0)), count
        )
    series = _series(index, some.data, specs, batch)
    if isinstance(series, Indexed):
        return _chosen(series, specs, some)
    return _streamed(series, specs, some)


def _series(index: GraphIndex, data: DataLike, specs: Specs, batch: int | None) -> Series:
    if isinstance(data, Images):
        return open_pictures(data, specs, batch, index.source.name)
    if isinstance(data, (str, Path)):
        return open_series(str(data), specs, batch)
    if not isinstance(data, Mapping) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        samples = cast("Sequence[Sample]", data)  # or less of one, as torch's Dataset is
        return Indexed(_LIBRARY, len(samples), lambda i: (f"sample {i}", samples[i]))
    if not isinstance(data, Iterable):
        raise DataError(
            f"{_LIBRARY}: are of type {type(data).__name__}; pass a path, or an iterable of dicts of arrays"
        )
    return Streamed(
        _LIBRARY,
        lambda: ((f"sample {i}", sample) for i, sample in enumerate(data)),
        once=iter(data) is data,
    )


def _chosen(series: Indexed, specs: Specs, some: Subset) -> Feeds:
    picks = _picks(series.count, some.samples, some.seed)
    return Feeds(
        _name(series.name, some, series.count),
        specs,
        lambda start, step: map(series.at, picks[start::step]),
        len(picks),
    )


def _name(name: str, some: Subset, count: int) -> str:
    """Return what the data is with what was taken of it."""
    if some.samples is None or some.samples >= count:
        return name
    return f"{name}, {some.samples} of {count} {'evenly' if some.seed is None else f'by seed {some.seed}'}"


def _picks(count: int, wanted: int | None, seed: int | None) -> Sequence[int]:
    """Return which of `count` samples are taken, in order."""
    if wanted is None or wanted >= count:
        return range(count)
    if seed is None:
        return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
    return sorted(np.random.default_rng(seed).choice(count, wanted, replace=False).tolist())


def _streamed(series: Streamed, specs: Specs, some: Subset) -> Feeds:
    if some.samples is None:
        return Feeds(series.name, specs, _sliced(series.read), None, series.once)
    if some.seed is None:
        return Feeds(
            f"{series.name}, at most the first {some.samples}",
            specs,
            _sliced(lambda: islice(series.read(), some.samples)),
            None,
            series.once,
        )
    if series.once:
        raise DataError(
            f"{series.name}: can be gone through only once, and a seed needs to know how many there are; pass a list, or no seed"
        )

    def read() -> Iterator[Named]:
        picks = set(_picks(sum(1 for _ in series.read()), some.samples, some.seed))
        return (named for i, named in enumerate(series.read()) if i in picks)

    return Feeds(
        f"{series.name}, at most {some.samples} by seed {some.seed}", specs, _sliced(read), None
    )


def with_absolute_paths(data: DataLike | None) -> DataLike | None:
    """Return the same data with paths that hold in any working directory."""
    if isinstance(data, Subset):
        return msgspec.structs.replace(data, data=with_absolute_paths(data.data))
    if isinstance(data, Images):
        file = Path(data.preprocess)
        return Images(
            Path(data.folder).resolve(), file.resolve() if file.is_file() else data.preprocess
        )
    if isinstance(data, (str, Path)) and data != NOISE:
        return str(Path(data).resolve())
    return data


def data_files(data: DataLike | None) -> tuple[Path, ...]:
    """Return the files that data is read from: none of them may be an output."""
    if isinstance(data, Subset):
        return data_files(data.data)
    if isinstance(data, Images):
        return (*list_pictures(Path(data.folder)), preprocess_path(data.preprocess))
    if not data or data == NOISE or not isinstance(data, (str, Path)):
        return ()
    return list_sample_files(str(data))


def _check_batch(index: GraphIndex, specs: Specs, batch: int | None) -> None:
    """Raise DataError for a `--batch` that differs from the batch that all inputs fix."""
    fixed = {spec.shape[0] if spec.shape else None for spec in specs}
    if batch and fixed and None not in fixed and batch not in fixed:
        raise DataError(
            f"{index.source.name}: its batch is fixed at {specs[0].shape[0]}, --batch {batch} cannot change it; leave it out"
        )


def _noise(specs: Specs, batch: int, count: int, seed: int) -> Iterator[Named]:
    rng = np.random.default_rng(seed)
    for i in range(count):
        yield f"noise sample {i}", {s.name: _random(rng, s, batch) for s in specs}


def _random(rng: np.random.Generator, spec: InputSpec, batch: int) -> Array:
    shape = tuple(d or (batch if axis == 0 else 1) for axis, d in enumerate(spec.shape))
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)
