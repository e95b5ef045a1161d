"""Samples in files: .npz and .npy, Polygraphy's saved inputs, and data-loader scripts."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qdq.arrays import Array
from qdq.data.input_specs import (
    UNREADABLE,
    Indexed,
    InputSpec,
    Named,
    Sample,
    Series,
    Specs,
    Streamed,
    find_array,
    join_input_names,
)
from qdq.errors import DataError, first_line

DATA_FORMS = (
    "pass --data with a folder of .npz or .npy files, one .npz or .npy, inputs that Polygraphy saved (.json), or a Polygraphy data-loader script, "
    "or --images with a folder of pictures"
)

#: Suffixes of the files that a folder of samples may hold, the kind that counts first.
SUFFIXES = (".npz", ".npy", ".json")
_LOADER_FUNCTION = "load_data"

#: A .npy file begins with this.
_NPY = b"\x93NUMPY"
_SAVE = "write it with numpy.savez(path, INPUT=array)"
_SAVE_NPY = "write it with numpy.save(path, array)"


def open_series(name: str, specs: Specs, batch: int | None) -> Series:
    """Return the samples of a file, folder or script; raises DataError where there are none that can be read."""
    path = Path(name)
    if path.is_dir():
        return _folder(path, specs, batch)
    if is_script(name):
        return _script(name)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {DATA_FORMS}")
    if path.suffix == ".npz":
        sample = _open_npz(path)
        return _stacked(
            path, specs, {spec.name: find_array(spec, sample, str(path)) for spec in specs}, batch
        )
    if path.suffix == ".npy":
        return _stacked(path, specs, {_only(path, specs).name: _open_npy(path)}, batch)
    if path.suffix == ".json":
        return Streamed(path.name, lambda: _saved_inputs(path))
    raise DataError(f"{path}: unknown kind of data; {DATA_FORMS}")


def list_sample_files(name: str) -> tuple[Path, ...]:
    """Return the files that samples are read from."""
    path = Path(name)
    if path.is_dir():
        return tuple(
            file
            for suffix in SUFFIXES
            for file in (*path.glob(f"*{suffix}"), *path.glob(f"*/*{suffix}"))
        )
    return (_script_path(name)[0] if is_script(name) else path,)


def _folder(path: Path, specs: Specs, batch: int | None) -> Series:
    found = {suffix: sorted(path.glob(f"*{suffix}")) for suffix in SUFFIXES}
    if found[".npz"] and found[".npy"]:
        raise DataError(f"{path}: holds .npz and .npy files; keep the ones that are samples")
    if files := found[".npz"]:
        return Indexed(_name(path), len(files), lambda i: (str(files[i]), _open_npz(files[i])))
    if found[".npy"]:
        return _npy_folder(path, found[".npy"], specs, batch)
    if files := found[".json"]:
        return Streamed(
            _name(path), lambda: (named for file in files for named in _saved_inputs(file))
        )
    if any((path / spec.name).is_dir() for spec in specs):
        return _folder_per_input(path, specs)
    raise DataError(
        f"{path}: holds no .npz files, .npy files or inputs that Polygraphy saved; write one .npz a sample, its arrays named {join_input_names(specs)}"
    )


def _name(path: Path) -> str:
    return path.name or str(path)


def _npy_folder(path: Path, files: list[Path], specs: Specs, batch: int | None) -> Series:
    """Read one .npy for each input, samples along its axis 0; or one a sample, where the model has one input."""
    by_name = {file.stem: file for file in files}
    if all(spec.name in by_name for spec in specs):
        return _stacked(
            path, specs, {spec.name: _open_npy(by_name[spec.name]) for spec in specs}, batch
        )
    only = _only(path, specs)
    return Indexed(
        _name(path), len(files), lambda i: (str(files[i]), {only.name: _open_npy(files[i])})
    )


def _only(path: Path, specs: Specs) -> InputSpec:
    if len(specs) == 1:
        return specs[0]
    raise DataError(
        f"{path}: an array without a name cannot feed the {len(specs)} inputs {join_input_names(specs)}; "
        "pass a folder with one INPUT.npy for each, or one folder INPUT/ of .npy files for each"
    )


def _folder_per_input(path: Path, specs: Specs) -> Series:
    """Read one folder of .npy files for each input: files of one name make a sample."""
    files = {
        spec.name: {file.name: file for file in (path / spec.name).glob("*.npy")} for spec in specs
    }
    every = sorted(set().union(*files.values()))
    if not every:
        raise DataError(
            f"{path}: its folders hold no .npy files; write one a sample into the folder of each input"
        )
    for spec in specs:
        if missing := [name for name in every if name not in files[spec.name]]:
            raise DataError(
                f"{path}: input {spec.name!r} has no file {path / spec.name / missing[0]}; files of one name make a sample"
            )
    return Indexed(
        _name(path),
        len(every),
        lambda i: (
            f"{path} sample {every[i]}",
            {name: _open_npy(of[every[i]]) for name, of in files.items()},
        ),
    )


def _stacked(path: Path, specs: Specs, arrays: Mapping[str, Array], batch: int | None) -> Series:
    """Return samples along axis 0 of one array for each input."""
    sizes = {spec.name: _batch_size(spec, arrays[spec.name], batch, path) for spec in specs}
    counts = {
        name: -(-len(arrays[name]) // size) if arrays[name].ndim else 0
        for name, size in sizes.items()
    }
    for spec in specs:
        size = sizes[spec.name]
        if spec.shape and spec.shape[0] == size and len(arrays[spec.name]) % size:
            count = len(arrays[spec.name])
            raise DataError(
                f"{path}: input {spec.name!r} has {count} entries, which batches of {size} do not divide; leave out {count % size}"
            )
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{path}: its arrays hold different numbers of samples: {counts}; axis 0 counts samples"
        )

    def at(i: int) -> Named:
        return f"{path} sample {i}", {
            s.name: _slice(s, arrays[s.name], i, sizes[s.name]) for s in specs
        }

    return Indexed(_name(path), max(counts.values(), default=0), at)


def _batch_size(spec: InputSpec, array: Array, batch: int | None, where: Path) -> int:
    """Return how many entries of axis 0 make one sample: 1 where the array has one axis more than the input."""
    if array.ndim == len(spec.shape) + 1:
        return 1
    fixed = spec.shape[0] if spec.shape else None
    if fixed and batch and fixed != batch:
        raise DataError(
            f"{where}: input {spec.name!r}: the model's batch is fixed at {fixed}, --batch {batch} cannot change it; leave it out"
        )
    return fixed or batch or 1


def _slice(spec: InputSpec, array: Array, i: int, size: int) -> Array:
    return array[i] if array.ndim == len(spec.shape) + 1 else array[i * size : (i + 1) * size]


def _open_npz(path: Path) -> Sample:
    try:
        if zipfile.is_zipfile(path):
            zipfile.ZipFile(path).close()  # unlike numpy, it closes a file that it cannot read
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return] # a NpzFile
        with path.open("rb") as file:
            single = file.read(len(_NPY)) == _NPY
    except UNREADABLE as error:
        raise DataError(
            f"{path}: is not a .npz file that numpy can read: {first_line(error)}; {_SAVE}"
        ) from error
    what = (
        "holds a single array without a name" if single else "is no .npz file, or a truncated one"
    )
    raise DataError(f"{path}: {what}; {_SAVE}")


def _open_npy(path: Path) -> Array:
    """Return the array of a .npy file, mapped and not read, so that a large one takes no memory."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_NPY)) == _NPY
        if begins:
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return] # an array, as it begins as one
    except UNREADABLE as error:
        raise DataError(
            f"{path}: is not a .npy file that numpy can read: {first_line(error)}; {_SAVE_NPY}"
        ) from error
    raise DataError(f"{path}: is no .npy file; {_SAVE_NPY}")


def _saved_inputs(path: Path) -> Iterator[Named]:
    """Yield the samples that ``polygraphy run --save-inputs`` or ``polygraphy.json.save_json`` wrote: a list of them, or one."""
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import from_json
    from polygraphy.logger import G_LOGGER

    try:
        with G_LOGGER.verbosity(
            G_LOGGER.CRITICAL + 1
        ):  # what it logs as critical it raises as well
            content = from_json(path.read_text(encoding="utf-8"))
    except (*UNREADABLE, KeyError, AttributeError, RecursionError, PolygraphyException) as error:
        raise DataError(
            f"{path}: is no JSON of inputs that Polygraphy can read: {first_line(error)}; write it with polygraphy run --save-inputs"
        ) from error
    for i, sample in enumerate(content if isinstance(content, list) else [content]):
        yield f"{path} sample {i}", sample


def is_script(name: str) -> bool:
    """Whether data is a Python script, with or without the name of a function."""
    return name.endswith(".py") or ".py:" in name


def _script(name: str) -> Series:
    """Read samples from a function of a Python script, as Polygraphy's --data-loader-script does."""
    path, function = _script_path(name)
    if not path.is_file():
        raise DataError(f"{path}: no such data-loader script; {DATA_FORMS}")

    def read() -> Iterator[Named]:
        try:
            load_data = _run_script(path).get(function)
            if not callable(load_data):
                raise DataError(
                    f"{path}: has no function {function}(); define it, or name another as {path}:FUNCTION"
                )
            for i, sample in enumerate(load_data()):
                yield f"{path} sample {i}", sample
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{path}: failed: {type(error).__name__}: {first_line(error)}; mend the script"
            ) from error

    return Streamed(path.name, read)


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
