"""Samples in files: .npz and .npy, Polygraphy's saved inputs, and data-loader scripts."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qdq.arrays import Array
from qdq.data.array_series import split_arrays
from qdq.data.input_specs import (
    UNREADABLE,
    Indexed,
    InputSpec,
    LazyArrays,
    Named,
    Sample,
    Series,
    Specs,
    Streamed,
    join_input_names,
)
from qdq.data.scripts import is_script, load_function, script_failure, split_script_name
from qdq.errors import DataError, first_line
from qdq.files.command_files import note_input
from qdq.memory import exceeds_memory, format_gigabytes
from qdq.optional_packages import require_package

DATA_FORMS = (
    "Pass --data with a folder of .npz or .npy files, one .npz or .npy, inputs that Polygraphy "
    "saved (.json), or a Polygraphy data-loader script, or --images with a folder of pictures."
)

#: Suffixes of the files that a folder of samples may hold, in order of preference.
SAMPLE_SUFFIXES = (".npz", ".npy", ".json")
_LOADER_FUNCTION = "load_data"

#: The first bytes of a .npy file.
_NPY = b"\x93NUMPY"
_SAVE = "Write it with numpy.savez(path, INPUT=array)."
_SAVE_NPY = "Write it with numpy.save(path, array)."


def open_series(name: str, specs: Specs, batch: int | None) -> Series:
    """Return the samples of a file, folder or script; raises DataError where none can be read."""
    path = Path(name)
    if path.is_dir():
        return _open_folder(path, specs, batch)
    if is_script(name):
        return _open_script(name)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder. {DATA_FORMS}")
    if path.suffix == ".npz":
        sample = _read_npz(path)
        return split_arrays(path, specs, sample, batch)
    if path.suffix == ".npy":
        spec = _require_single_input(path, specs)
        return split_arrays(path, specs, {spec.name: _map_npy(path)}, batch)
    if path.suffix == ".json":
        return Streamed(path.name, lambda: _read_saved_inputs(path))
    raise DataError(f"{path}: this kind of data is unknown. {DATA_FORMS}")


def open_arrays(name: str, data: Any, specs: Specs, batch: int | None) -> Series:
    """Return the samples of one array, or of one for each input; axis 0 counts them.

    Arrays of other names, such as labels, are cut along with them. Raises DataError where one array
    must feed several inputs, and for arrays that do not fit.
    """
    if not isinstance(data, Mapping):
        data = {_require_single_input(name, specs).name: data}
    return split_arrays(name, specs, data, batch)


def list_sample_files(name: str) -> tuple[Path, ...]:
    """Return the files that samples are read from."""
    path = Path(name)
    if not path.is_dir():
        return (split_script_name(name, _LOADER_FUNCTION)[0] if is_script(name) else path,)
    files: list[Path] = []
    for suffix in SAMPLE_SUFFIXES:
        files += path.glob(f"*{suffix}")
        files += path.glob(f"*/*{suffix}")
    return tuple(files)


def _open_folder(path: Path, specs: Specs, batch: int | None) -> Series:
    files = {suffix: sorted(path.glob(f"*{suffix}")) for suffix in SAMPLE_SUFFIXES}
    if files[".npz"] and files[".npy"]:
        raise DataError(
            f"{path}: the folder holds .npz and .npy files. Keep those that are samples."
        )
    if files[".npz"]:
        return _open_npz_folder(path, files[".npz"])
    if files[".npy"]:
        return _open_npy_folder(path, files[".npy"], specs, batch)
    if files[".json"]:
        return Streamed(_name(path), lambda: _read_json_files(files[".json"]))
    if any((path / spec.name).is_dir() for spec in specs):
        return _open_folder_per_input(path, specs)
    raise DataError(
        f"{path}: the folder holds no .npz files, .npy files or inputs that Polygraphy saved. "
        f"Write one .npz per sample, its arrays named {join_input_names(specs)}."
    )


def _name(path: Path) -> str:
    return path.name or str(path)


def _open_npz_folder(path: Path, files: list[Path]) -> Indexed:
    """Read one .npz per sample."""

    def read(i: int) -> Named:
        return str(files[i]), _read_npz(files[i])

    return Indexed(_name(path), len(files), read)


def _read_json_files(files: list[Path]) -> Iterator[Named]:
    for file in files:
        yield from _read_saved_inputs(file)


def _open_npy_folder(path: Path, files: list[Path], specs: Specs, batch: int | None) -> Series:
    """Read one .npy for each input, or one per sample where the model has one input."""
    by_name = {file.stem: file for file in files}
    if all(spec.name in by_name for spec in specs):
        arrays = LazyArrays({name: partial(_map_npy, file) for name, file in by_name.items()})
        return split_arrays(path, specs, arrays, batch)
    spec = _require_single_input(path, specs)

    def read(i: int) -> Named:
        return str(files[i]), {spec.name: _map_npy(files[i])}

    return Indexed(_name(path), len(files), read)


def _require_single_input(path: Path | str, specs: Specs) -> InputSpec:
    if len(specs) == 1:
        return specs[0]
    raise DataError(
        f"{path}: an array without a name cannot feed the {len(specs)} inputs "
        f"{join_input_names(specs)}. Pass a folder with one INPUT.npy for each, or one folder "
        "INPUT/ of .npy files for each."
    )


def _list_folder_files(path: Path) -> dict[str, dict[str, Path]]:
    """Return the .npy files of each folder in a folder, by the names of the folder and the file."""
    files: dict[str, dict[str, Path]] = {}
    for folder in path.iterdir():
        if folder.is_dir():
            files[folder.name] = {file.name: file for file in folder.glob("*.npy")}
    return files


def _open_folder_per_input(path: Path, specs: Specs) -> Series:
    """Read one folder of .npy files for each input: files of one name make a sample.

    Other folders with a file for every sample hold labels and the like.
    """
    files = _list_folder_files(path)
    sample_names = sorted(set().union(*(files.get(spec.name, {}) for spec in specs)))
    if not sample_names:
        raise DataError(
            f"{path}: its folders hold no .npy files. "
            "Write one per sample into the folder of each input."
        )
    for spec in specs:
        missing = [name for name in sample_names if name not in files.get(spec.name, {})]
        if missing:
            raise DataError(
                f"{path}: input {spec.name!r} has no file {path / spec.name / missing[0]}. "
                "Files of one name make a sample."
            )

    complete = {name: paths for name, paths in files.items() if paths.keys() >= set(sample_names)}

    def read(i: int) -> Named:
        name = sample_names[i]
        arrays = {array: partial(_map_npy, paths[name]) for array, paths in complete.items()}
        return f"{path} sample {name}", LazyArrays(arrays)

    return Indexed(_name(path), len(sample_names), read)


def _read_npz(path: Path) -> Sample:
    note_input(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # unlike numpy, it closes what it cannot read
                _require_memory(path, archive)
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return] # a NpzFile
        is_npy = _begins_like_npy(path)
    except UNREADABLE as error:
        raise DataError(
            f"{path}: numpy cannot read this .npz file: {first_line(error)}. {_SAVE}"
        ) from error
    if is_npy:
        raise DataError(f"{path}: the file holds a single array without a name. {_SAVE}")
    raise DataError(f"{path}: this is no .npz file, or a truncated one. {_SAVE}")


def _require_memory(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise DataError for an array that unpacks to more than the machine's memory."""
    for member in archive.infolist():
        if exceeds_memory(member.file_size):
            raise DataError(
                f"{path}: {member.filename} unpacks to {format_gigabytes(member.file_size)}, more "
                "than the memory of this machine. Write one .npz per sample."
            )


def _map_npy(path: Path) -> Array:
    """Return the array of a .npy file, memory-mapped so that a large one takes no memory."""
    note_input(path)
    try:
        if _begins_like_npy(path):
            return _load_npy(path)
    except UNREADABLE as error:
        raise DataError(
            f"{path}: numpy cannot read this .npy file: {first_line(error)}. {_SAVE_NPY}"
        ) from error
    raise DataError(f"{path}: this is no .npy file. {_SAVE_NPY}")


def _load_npy(path: Path) -> Array:
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        # Headers that Python 2 wrote are read; a size that no array has is refused.
        warnings.simplefilter("ignore")
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _begins_like_npy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_NPY)) == _NPY


def _read_saved_inputs(path: Path) -> Iterator[Named]:
    """Yield the samples of Polygraphy's JSON: a list of them, or a single one.

    ``polygraphy run --save-inputs`` and ``polygraphy.json.save_json`` write such files.
    """
    require_package("polygraphy")
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import from_json
    from polygraphy.logger import G_LOGGER

    note_input(path)
    try:
        # Errors that Polygraphy logs as critical are also raised.
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            content = from_json(path.read_text(encoding="utf-8"))
    except (*UNREADABLE, KeyError, AttributeError, RecursionError, PolygraphyException) as error:
        raise DataError(
            f"{path}: Polygraphy cannot read this JSON of inputs: {first_line(error)}. "
            "Write it with polygraphy run --save-inputs."
        ) from error
    samples = content if isinstance(content, list) else [content]
    for i, sample in enumerate(samples):
        yield f"{path} sample {i}", sample


def _open_script(name: str) -> Series:
    """Read samples from a function of a Python script, like Polygraphy's --data-loader-script."""
    path, function = split_script_name(name, _LOADER_FUNCTION)
    if not path.is_file():
        raise DataError(f"{path}: there is no such data-loader script. {DATA_FORMS}")

    def read() -> Iterator[Named]:
        load_data = load_function(path, function, DataError)
        try:
            for i, sample in enumerate(load_data()):
                yield f"{path} sample {i}", sample
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            raise script_failure(path, error, DataError) from error

    return Streamed(path.name, read)
