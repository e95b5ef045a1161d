"""Calibration and validation inputs: folders of .npz, one .npz of many samples, data-loader scripts, noise by name."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx

from qdq.errors import DataError, ModelError, did_you_mean, first_line
from qdq.index import Array, GraphIndex

Sample = Mapping[str, Array]
#: A path, the word "noise", or any iterable of samples that can be gone through more than once.
DataLike = str | Path | Iterable[Sample]

NOISE = "noise"
_NOISE_SAMPLES = 8
_LOADER_FUNCTION = "load_data"
#: What numpy and zipfile raise for damaged or pickled content, and for objects that are no arrays.
_UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile)
#: A .npy file begins with this.
_NPY = b"\x93NUMPY"
_SAVE = "write it with numpy.savez(path, INPUT=array)"
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
        try:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except KeyError as error:
            raise ModelError(f"{index.source.name}: input {name!r} is no tensor of a known type, so nothing can be fed to it; export it as a tensor") from error
        specs.append(InputSpec(name, dtype, dims))
    return tuple(specs)


def open_feeds(index: GraphIndex, data: DataLike | None, batch: int | None = None) -> Feeds:
    """Return the samples that `data` names, cut to the model's batch (or `batch` where that is dynamic).

    Raises DataError where there is nothing to read; what is read is checked sample by sample.
    """
    specs = input_specs(index)
    if data is None:
        raise DataError(f"{index.source.name}: no calibration data; {_HOW} ('--data noise' is only for trying things out)")
    _check_batch(index, specs, batch)
    if data == NOISE:
        return Feeds(NOISE, specs, lambda: _noise(specs, batch or 1), _NOISE_SAMPLES)
    if not isinstance(data, (str, Path)):
        return Feeds("samples passed to the library", specs, lambda: ((f"sample {i}", s) for i, s in enumerate(data)), None)
    path = Path(data)
    if path.is_dir():
        return _folder(path, specs)
    name = str(data)
    if _is_script(name):
        return _script(name, specs)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_HOW}")
    if path.suffix != ".npz":
        raise DataError(f"{path}: unknown kind of data; {_HOW}")
    return _stacked(path, specs, batch)


def data_files(data: str | None) -> tuple[Path, ...]:
    """Return the files that `--data` names: none of them may be an output."""
    if not data or data == NOISE:
        return ()
    path = Path(data)
    return tuple(path.glob("*.npz")) if path.is_dir() else (_script_path(data)[0] if _is_script(data) else path,)


def _check_batch(index: GraphIndex, specs: tuple[InputSpec, ...], batch: int | None) -> None:
    """Raise DataError for a `--batch` that differs from the batch that all inputs fix."""
    fixed = {spec.shape[0] if spec.shape else None for spec in specs}
    if batch and fixed and None not in fixed and batch not in fixed:
        raise DataError(f"{index.source.name}: its batch is fixed at {specs[0].shape[0]}, --batch {batch} cannot change it; leave it out")


def _folder(path: Path, specs: tuple[InputSpec, ...]) -> Feeds:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise DataError(f"{path}: holds no .npz files; write one a sample, its arrays named {_names(specs)}")
    return Feeds(path.name or str(path), specs, lambda: ((str(file), _open_npz(file)) for file in files), len(files))


def _stacked(path: Path, specs: tuple[InputSpec, ...], batch: int | None) -> Feeds:
    arrays = {spec.name: _array(spec, _open_npz(path), str(path)) for spec in specs}
    sizes = {spec.name: _batch_size(spec, arrays[spec.name], batch, path) for spec in specs}
    counts = {name: -(-len(arrays[name]) // size) if arrays[name].ndim else 0 for name, size in sizes.items()}
    for spec in specs:
        size = sizes[spec.name]
        if spec.shape and spec.shape[0] == size and len(arrays[spec.name]) % size:
            count = len(arrays[spec.name])
            raise DataError(f"{path}: input {spec.name!r} has {count} entries, which batches of {size} do not divide; leave out {count % size}")
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: its arrays hold different numbers of samples: {counts}; axis 0 counts samples")

    def read() -> Iterator[tuple[str, Sample]]:
        for i in range(max(counts.values(), default=0)):
            yield f"{path} sample {i}", {s.name: _slice(s, arrays[s.name], i, sizes[s.name]) for s in specs}

    return Feeds(path.name, specs, read, max(counts.values(), default=0))


def _batch_size(spec: InputSpec, array: Array, batch: int | None, where: Path) -> int:
    """Return how many entries of axis 0 make one sample: 1 where the array has one axis more than the input."""
    if array.ndim == len(spec.shape) + 1:
        return 1
    fixed = spec.shape[0] if spec.shape else None
    if fixed and batch and fixed != batch:
        raise DataError(f"{where}: input {spec.name!r}: the model's batch is fixed at {fixed}, --batch {batch} cannot change it; leave it out")
    return fixed or batch or 1


def _slice(spec: InputSpec, array: Array, i: int, size: int) -> Array:
    return array[i] if array.ndim == len(spec.shape) + 1 else array[i * size : (i + 1) * size]


def _script(name: str, specs: tuple[InputSpec, ...]) -> Feeds:
    """Read samples from a function of a Python script, as Polygraphy's --data-loader-script does."""
    path, function = _script_path(name)
    if not path.is_file():
        raise DataError(f"{path}: no such data-loader script; {_HOW}")

    def read() -> Iterator[tuple[str, Sample]]:
        try:
            load_data = _run_script(path).get(function)
            if not callable(load_data):
                raise DataError(f"{path}: has no function {function}(); define it, or name another as {path}:FUNCTION")
            for i, sample in enumerate(load_data()):
                yield f"{path} sample {i}", sample
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{path}: failed: {type(error).__name__}: {first_line(error)}; mend the script") from error

    return Feeds(path.name, specs, read, None)


def _is_script(name: str) -> bool:
    return name.endswith(".py") or ".py:" in name


def _script_path(name: str) -> tuple[Path, str]:
    file, _, function = name.partition(".py")
    return Path(f"{file}.py"), function.lstrip(":") or _LOADER_FUNCTION


def _run_script(path: Path) -> dict[str, Any]:
    """Run a script that may import its neighbours, and return what it defines."""
    module = ModuleType(f"qdq_data_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    finally:
        del sys.path[0]
    return module.__dict__


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
        if zipfile.is_zipfile(path):
            zipfile.ZipFile(path).close()  # unlike numpy, it closes a file that it cannot read
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return] # a NpzFile
        with path.open("rb") as file:
            single = file.read(len(_NPY)) == _NPY
    except _UNREADABLE as error:
        raise DataError(f"{path}: is not a .npz file that numpy can read: {first_line(error)}; {_SAVE}") from error
    what = "holds a single array without a name" if single else "is no .npz file, or a truncated one"
    raise DataError(f"{path}: {what}; {_SAVE}")


def _names(specs: Iterable[InputSpec]) -> str:
    return ", ".join(repr(s.name) for s in specs)


def _array(spec: InputSpec, sample: Any, where: str) -> Array:
    if not isinstance(sample, Mapping):
        raise DataError(f"{where}: is of type {type(sample).__name__}; each sample must map input names to arrays")
    if spec.name not in sample:
        known = [str(name) for name in sample]
        holds = ", ".join(map(repr, known)) or "nothing"
        raise DataError(f"{where}: has no array for input {spec.name!r}; it holds {holds}{did_you_mean(spec.name, known)}; name arrays after inputs")
    try:
        return np.asarray(sample[spec.name])
    except _UNREADABLE as error:
        raise DataError(f"{where}: input {spec.name!r} cannot be read: {first_line(error)}; save it again as numbers") from error


def _checked(spec: InputSpec, sample: Sample, where: str) -> Array:
    array = _array(spec, sample, where)
    if str(array.dtype) != spec.dtype:
        raise DataError(f"{where}: input {spec.name!r} holds {array.dtype}, the model wants {spec.dtype}; convert it with .astype({spec.dtype!r})")
    fits = array.ndim == len(spec.shape) and all(want in (None, got) for want, got in zip(spec.shape, array.shape, strict=True))
    if not fits:
        raise DataError(f"{where}: input {spec.name!r} has shape {list(array.shape)}, the model wants {spec}; make it fit")
    if array.size == 0:
        raise DataError(f"{where}: input {spec.name!r} is empty; leave the sample out")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{where}: input {spec.name!r} holds NaN or Inf; mend the data")
    return np.ascontiguousarray(array)
