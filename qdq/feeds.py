"""Calibration and validation inputs: folders of .npz, one .npz of many samples, data-loader scripts, noise by name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from qdq.errors import DataError, did_you_mean, first_line
from qdq.index import Array, GraphIndex

Sample = Mapping[str, Array]
#: A path, the word "noise", or any iterable of samples that can be gone through more than once.
DataLike = str | Path | Iterable[Sample]

NOISE = "noise"
_NOISE_SAMPLES = 8
_LOADER_FUNCTION = "load_data"
_HOW = "pass --data with a folder of .npz files, one .npz, or a Polygraphy data-loader script"


class InputSpec(msgspec.Struct, frozen=True):
    """One input that the model must be fed."""

    name: str
    #: numpy's name of the element type.
    dtype: str
    #: Dimensions, None for each dynamic one.
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


class Feeds:
    """Samples that fit a model's inputs, checked as they are read; can be gone through again and again."""

    def __init__(self, name: str, specs: tuple[InputSpec, ...], read: Callable[[], Iterator[tuple[str, Sample]]], count: int | None) -> None:
        #: What the data is, for reports: a file name, or "noise".
        self.name = name
        self.specs = specs
        #: How many samples there are, or None where only reading them tells.
        self.count = count
        self._read = read

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Yield each sample as arrays by input name; raises DataError naming the file and the input."""
        read = 0
        for where, sample in self._read():
            read += 1
            yield {spec.name: _checked(spec, sample, where) for spec in self.specs}
        if not read:
            raise DataError(f"{self.name}: holds no samples; {_HOW}")

    def first(self) -> dict[str, Array]:
        """Return the first sample."""
        return next(iter(self))


def input_specs(index: GraphIndex) -> tuple[InputSpec, ...]:
    """Return what must be fed to a model; initializers listed as inputs are left out."""
    specs = []
    for name, value in index.inputs.items():
        tensor = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
        specs.append(InputSpec(name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), dims))
    return tuple(specs)


def open_feeds(index: GraphIndex, data: DataLike | None, batch: int | None = None) -> Feeds:
    """Return the samples that `data` names, cut to the model's batch (or `batch` where that is dynamic).

    Raises DataError where there is nothing to read; what is read is checked sample by sample.
    """
    specs = input_specs(index)
    if data is None:
        raise DataError(f"{index.source.name}: no calibration data; {_HOW} ('--data noise' is only for trying things out)")
    if data == NOISE:
        return Feeds(NOISE, specs, lambda: _noise(specs, batch or 1), _NOISE_SAMPLES)
    if not isinstance(data, (str, Path)):
        return Feeds("samples passed to the library", specs, lambda: ((f"sample {i}", s) for i, s in enumerate(data)), None)
    path = Path(data)
    if path.is_dir():
        return _folder(path, specs)
    name = str(data)
    if name.endswith(".py") or ".py:" in name:
        return _script(name, specs)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_HOW}")
    if path.suffix != ".npz":
        raise DataError(f"{path}: unknown kind of data; {_HOW}")
    return _stacked(path, specs, batch)


def _folder(path: Path, specs: tuple[InputSpec, ...]) -> Feeds:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise DataError(f"{path}: holds no .npz files; write one a sample, its arrays named {_names(specs)}")
    return Feeds(path.name or str(path), specs, lambda: ((str(file), _open_npz(file)) for file in files), len(files))


def _stacked(path: Path, specs: tuple[InputSpec, ...], batch: int | None) -> Feeds:
    arrays = {spec.name: _array(spec, _open_npz(path), str(path)) for spec in specs}
    sizes = {spec.name: _batch_size(spec, arrays[spec.name], batch) for spec in specs}
    counts = {name: -(-len(arrays[name]) // size) if arrays[name].ndim else 0 for name, size in sizes.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: its arrays hold different numbers of samples: {counts}; axis 0 counts samples")

    def read() -> Iterator[tuple[str, Sample]]:
        for i in range(max(counts.values(), default=0)):
            yield f"{path} sample {i}", {s.name: _slice(s, arrays[s.name], i, sizes[s.name]) for s in specs}

    return Feeds(path.name, specs, read, max(counts.values(), default=0))


def _batch_size(spec: InputSpec, array: Array, batch: int | None) -> int:
    """Return how many entries of axis 0 make one sample: 1 where the array has one axis more than the input."""
    if array.ndim == len(spec.shape) + 1:
        return 1
    fixed = spec.shape[0] if spec.shape else None
    if fixed and batch and fixed != batch:
        raise DataError(f"input {spec.name!r}: the model's batch is fixed at {fixed}, --batch {batch} cannot change it; leave it out")
    return fixed or batch or 1


def _slice(spec: InputSpec, array: Array, i: int, size: int) -> Array:
    return array[i] if array.ndim == len(spec.shape) + 1 else array[i * size : (i + 1) * size]


def _script(name: str, specs: tuple[InputSpec, ...]) -> Feeds:
    """Read samples from a function of a Python script, as Polygraphy's --data-loader-script does."""
    file, _, function = name.partition(".py")
    path, function = Path(f"{file}.py"), function.lstrip(":") or _LOADER_FUNCTION
    if not path.is_file():
        raise DataError(f"{path}: no such data-loader script; {_HOW}")

    def read() -> Iterator[tuple[str, Sample]]:
        from polygraphy import mod
        from polygraphy.exception import PolygraphyException

        try:
            loader = mod.import_from_script(str(path), function)
            for i, sample in enumerate(loader()):
                yield f"{path} sample {i}", sample
        except (DataError, GeneratorExit):
            raise
        except (Exception, PolygraphyException) as error:
            raise DataError(f"{path}: {function}() failed: {type(error).__name__}: {first_line(error)}") from error

    return Feeds(path.name, specs, read, None)


def _noise(specs: tuple[InputSpec, ...], batch: int) -> Iterator[tuple[str, Sample]]:
    rng = np.random.default_rng(0)
    for i in range(_NOISE_SAMPLES):
        yield f"noise sample {i}", {s.name: _random(rng, s, batch) for s in specs}


def _random(rng: np.random.Generator, spec: InputSpec, batch: int) -> Array:
    shape = tuple(d or (batch if axis == 0 else 1) for axis, d in enumerate(spec.shape))
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def _open_npz(path: Path) -> Sample:
    try:
        content = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not a .npz file that numpy can read: {first_line(error)}") from error
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: holds a single array without a name; save it with numpy.savez(path, INPUT=array)")
    return content


def _names(specs: Iterable[InputSpec]) -> str:
    return ", ".join(repr(s.name) for s in specs)


def _array(spec: InputSpec, sample: Any, where: str) -> Array:
    if not isinstance(sample, Mapping):
        raise DataError(f"{where}: is a {type(sample).__name__}; each sample must map input names to arrays")
    if spec.name not in sample:
        raise DataError(f"{where}: has no array for input {spec.name!r}; it holds {', '.join(map(repr, sample))}{did_you_mean(spec.name, sample)}")
    try:
        return np.asarray(sample[spec.name])
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{where}: input {spec.name!r} cannot be read: {first_line(error)}") from error


def _checked(spec: InputSpec, sample: Sample, where: str) -> Array:
    array = _array(spec, sample, where)
    if str(array.dtype) != spec.dtype:
        raise DataError(f"{where}: input {spec.name!r} holds {array.dtype}, the model wants {spec.dtype}; convert it with .astype({spec.dtype!r})")
    fits = array.ndim == len(spec.shape) and all(want in (None, got) for want, got in zip(spec.shape, array.shape, strict=True))
    if not fits:
        raise DataError(f"{where}: input {spec.name!r} has shape {list(array.shape)}, the model wants {spec}")
    if array.size == 0:
        raise DataError(f"{where}: input {spec.name!r} is empty")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{where}: input {spec.name!r} holds NaN or Inf; mend the data")
    return np.ascontiguousarray(array)
