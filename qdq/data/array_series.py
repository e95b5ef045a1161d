"""Samples along axis 0 of arrays that hold many of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

from qdq.arrays import Array
from qdq.data.input_specs import (
    Indexed,
    InputSpec,
    LazyArrays,
    Named,
    Sample,
    Specs,
    find_array,
    read_array,
)
from qdq.errors import DataError


def split_arrays(path: Path | str, specs: Specs, data: Sample, batch: int | None) -> Indexed:
    """Return samples along axis 0 of one array for each input, other arrays along with them.

    Raises DataError for arrays of different numbers of samples, and where the model's batch does
    not divide an array.
    """
    arrays = {spec.name: find_array(spec, data, str(path)) for spec in specs}
    sizes = {spec.name: _batch_size(spec, arrays[spec.name], batch, path) for spec in specs}
    for spec in specs:
        _require_whole_batches(path, spec, arrays[spec.name], sizes[spec.name])
    counts = {name: _count_samples(arrays[name], size) for name, size in sizes.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{path}: its arrays hold different numbers of samples: {counts}. "
            "Axis 0 counts samples. Make them equal."
        )
    count = max(counts.values(), default=0)
    series = _ArraySeries(path, specs, arrays, sizes, data, count)
    return Indexed(Path(path).name or str(path), count, series.read)


class _ArraySeries:
    """Arrays that hold many samples, and the batch of each input."""

    def __init__(
        self,
        path: Path | str,
        specs: Specs,
        arrays: Mapping[str, Array],
        sizes: Mapping[str, int],
        data: Sample,
        count: int,
    ) -> None:
        self._path = path
        self._specs = specs
        self._arrays = arrays
        self._sizes = sizes
        self._count = count
        self._extra_names = [name for name in data if name not in arrays]
        self._read_extra = cache(lambda name: read_array(data, name, "array", str(path)))
        #: The batch of the inputs by the length of their axis 0, where that holds batches.
        self._batch_sizes: dict[int, int] = {}
        for spec in specs:
            array = arrays[spec.name]
            if array.ndim and not _has_sample_axis(spec, array):
                self._batch_sizes[len(array)] = sizes[spec.name]

    def read(self, i: int) -> Named:
        """Return a sample."""
        readers: dict[str, Callable[[], Array]] = {}
        for name in self._extra_names:
            readers[name] = partial(self._cut_extra, name, i)
        for spec in self._specs:
            size = self._sizes[spec.name]
            readers[spec.name] = partial(_slice_batch, spec, self._arrays[spec.name], i, size)
        return f"{self._path} sample {i}", LazyArrays(readers)

    def _cut_extra(self, name: str, i: int) -> Array:
        """Return the part of an array that belongs to a sample; it is no input of the model.

        It is cut like an input whose axis 0 is as long, else by the number of samples. An array of
        another length belongs to every sample.
        """
        array = self._read_extra(name)
        length = len(array) if array.ndim else 0
        if length in self._batch_sizes:
            size = self._batch_sizes[length]
            return array[i * size : (i + 1) * size]
        if length == self._count:
            entry: Array = array[i]
            return entry
        return array


def _count_samples(array: Array, size: int) -> int:
    return -(-len(array) // size) if array.ndim else 0


def _require_whole_batches(path: Path | str, spec: InputSpec, array: Array, size: int) -> None:
    """Raise DataError where a batch that the model fixes does not divide an array."""
    if not spec.shape or spec.shape[0] != size or not array.ndim:
        return
    excess = len(array) % size
    if excess:
        raise DataError(
            f"{path}: input {spec.name!r} has {len(array)} entries, which batches of {size} do not "
            f"divide. Remove {excess}."
        )


def _has_sample_axis(spec: InputSpec, array: Array) -> bool:
    """Whether axis 0 counts samples, before the axes of the input."""
    return array.ndim == len(spec.shape) + 1


def _batch_size(spec: InputSpec, array: Array, batch: int | None, path: Path | str) -> int:
    """Return how many entries of axis 0 make a sample: 1 for an array of one axis more."""
    if _has_sample_axis(spec, array):
        return 1
    fixed = spec.shape[0] if spec.shape else None
    if fixed and batch and fixed != batch:
        raise DataError(
            f"{path}: input {spec.name!r}: the model's batch is fixed at {fixed}, "
            f"--batch {batch} cannot change it. Remove --batch."
        )
    return fixed or batch or 1


def _slice_batch(spec: InputSpec, array: Array, i: int, size: int) -> Array:
    if _has_sample_axis(spec, array):
        entry: Array = array[i]
        return entry
    return array[i * size : (i + 1) * size]
