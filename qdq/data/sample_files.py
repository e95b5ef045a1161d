"""Samples in files: .npz and .npy, Polygraphy's saved inputs, and data-loader scripts."""

from __future__ import annotations

import sys
import warnings
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
from qdq.files.command_files import note_input
from qdq.memory import format_gigabytes, total_memory

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
        arrays = {spec.name: find_array(spec, sample, str(path)) for spec in specs}
        return _split_arrays(path, specs, arrays, batch)
    if path.suffix == ".npy":
        spec = _require_single_input(path, specs)
        return _split_arrays(path, specs, {spec.name: _map_npy(path)}, batch)
    if path.suffix == ".json":
        return Streamed(path.name, lambda: _read_saved_inputs(path))
    raise DataError(f"{path}: this kind of data is unknown. {DATA_FORMS}")


def open_arrays(name: str, data: Any, specs: Specs, batch: int | None) -> Series:
    """Return the samples of one array, or of one for each input; axis 0 counts them.

    Raises DataError where one array must feed several inputs, and for arrays that do not fit.
    """
    if not isinstance(data, Mapping):
        data = {_require_single_input(name, specs).name: data}
    arrays = {spec.name: find_array(spec, data, name) for spec in specs}
    return _split_arrays(name, specs, arrays, batch)


def list_sample_files(name: str) -> tuple[Path, ...]:
    """Return the files that samples are read from."""
    path = Path(name)
    if not path.is_dir():
        return (_split_script_name(name)[0] if is_script(name) else path,)
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
        arrays = {spec.name: _map_npy(by_name[spec.name]) for spec in specs}
        return _split_arrays(path, specs, arrays, batch)
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


def _open_folder_per_input(path: Path, specs: Specs) -> Series:
    """Read one folder of .npy files for each input: files of one name make a sample."""
    files: dict[str, dict[str, Path]] = {}
    for spec in specs:
        files[spec.name] = {file.name: file for file in (path / spec.name).glob("*.npy")}
    sample_names = sorted(set().union(*files.values()))
    if not sample_names:
        raise DataError(
            f"{path}: its folders hold no .npy files. "
            "Write one per sample into the folder of each input."
        )
    for spec in specs:
        missing = [name for name in sample_names if name not in files[spec.name]]
        if missing:
            raise DataError(
                f"{path}: input {spec.name!r} has no file {path / spec.name / missing[0]}. "
                "Files of one name make a sample."
            )

    def read(i: int) -> Named:
        name = sample_names[i]
        sample = {input_name: _map_npy(paths[name]) for input_name, paths in files.items()}
        return f"{path} sample {name}", sample

    return Indexed(_name(path), len(sample_names), read)


def _split_arrays(
    path: Path | str, specs: Specs, arrays: Mapping[str, Array], batch: int | None
) -> Series:
    """Return samples along axis 0 of one array for each input."""
    sizes = {spec.name: _batch_size(spec, arrays[spec.name], batch, path) for spec in specs}
    for spec in specs:
        _require_whole_batches(path, spec, arrays[spec.name], sizes[spec.name])
    counts = {name: _count_samples(arrays[name], size) for name, size in sizes.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{path}: its arrays hold different numbers of samples: {counts}. "
            "Axis 0 counts samples. Make them equal."
        )

    def read(i: int) -> Named:
        sample = {}
        for spec in specs:
            sample[spec.name] = _slice_batch(spec, arrays[spec.name], i, sizes[spec.name])
        return f"{path} sample {i}", sample

    return Indexed(_name(Path(path)), max(counts.values(), default=0), read)


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


def _batch_size(spec: InputSpec, array: Array, batch: int | None, path: Path | str) -> int:
    """Return how many entries of axis 0 make a sample: 1 for an array of one axis more."""
    if array.ndim == len(spec.shape) + 1:
        return 1
    fixed = spec.shape[0] if spec.shape else None
    if fixed and batch and fixed != batch:
        raise DataError(
            f"{path}: input {spec.name!r}: the model's batch is fixed at {fixed}, "
            f"--batch {batch} cannot change it. Remove --batch."
        )
    return fixed or batch or 1


def _slice_batch(spec: InputSpec, array: Array, i: int, size: int) -> Array:
    if array.ndim == len(spec.shape) + 1:
        entry: Array = array[i]
        return entry
    return array[i * size : (i + 1) * size]


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
        if member.file_size > total_memory():
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


def is_script(name: str) -> bool:
    """Whether data is a Python script, with or without the name of a function."""
    return name.endswith(".py") or ".py:" in name


def _open_script(name: str) -> Series:
    """Read samples from a function of a Python script, like Polygraphy's --data-loader-script."""
    path, function = _split_script_name(name)
    if not path.is_file():
        raise DataError(f"{path}: there is no such data-loader script. {DATA_FORMS}")

    def read() -> Iterator[Named]:
        try:
            load_data = _run_script(path).get(function)
            if not callable(load_data):
                raise DataError(
                    f"{path}: the script has no function {function}(). "
                    f"Define it, or pass {path}:FUNCTION to name another."
                )
            for i, sample in enumerate(load_data()):
                yield f"{path} sample {i}", sample
        except DataError:
            raise
        except (Exception, SystemExit) as error:
            failure = f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"{path}: the script failed: {failure}. Fix the script.") from error

    return Streamed(path.name, read)


def _split_script_name(name: str) -> tuple[Path, str]:
    file, _, function = name.partition(".py")
    return Path(f"{file}.py"), function.lstrip(":") or _LOADER_FUNCTION


def _run_script(path: Path) -> dict[str, Any]:
    """Run a script that may import its neighbours, and return its namespace."""
    note_input(path)
    module = ModuleType(f"qdq_data_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    finally:
        del sys.path[0]
    return module.__dict__
