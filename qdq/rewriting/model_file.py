"""The file of a rewritten model, with its external data."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import onnx

from qdq.arguments import require_type, to_path
from qdq.errors import ModelError, UsageError
from qdq.files.command_files import CommandFiles, note_output
from qdq.files.output import atomic_file, check_in_place, check_place, copy_atomic
from qdq.files.temporary import fill_file
from qdq.graph.model_content import iterate_content
from qdq.graph.onnx_checker import find_complaint
from qdq.graph.source import Source
from qdq.stage_log import timed_stage


def check_onnx(model: onnx.ModelProto, name: Path) -> None:
    """Raise ModelError, for the output `name`, where onnx.checker rejects a model.

    Plugins are no reason.
    """
    complaint = find_complaint(model)
    if complaint:
        raise ModelError(
            f"{name}: onnx.checker rejects the result: {complaint}."
            " Pass a model that passes onnx.checker."
        )


def save(model: onnx.ModelProto, source: Source, path: str | Path, force: bool = False) -> None:
    """Write a model made from `source` to `path`, with copies of its external data files.

    All of these files are written or none. onnx.checker must pass the model. Raises ModelError
    where it does not, and UsageError where a file cannot be written.
    """
    require_type(model, onnx.ModelProto, "model", "an onnx.ModelProto")
    require_type(source, Source, "source", "the result's source, or what qdq.load returns")
    path = to_path(path, "path")
    written = msgspec.structs.replace(source, model=model)
    _write(model, source, path, plan_external_copies(written, path, force))


def save_in_place(model: onnx.ModelProto, source: Source, path: Path) -> None:
    """Replace the file at `path`, which `source` was read from, by a model made from it.

    The external data stays. Raises the errors of `save`, and UsageError for a file that is
    read-only or has other names.
    """
    check_in_place(path)
    _write(model, source, path, {})


@timed_stage("writing")
def _write(model: onnx.ModelProto, source: Source, path: Path, copies: Mapping[Path, Path]) -> None:
    """Write a model to `path`, and the files in `copies` to their destinations."""
    with atomic_file(path) as temporary, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(fill_file, temporary, iterate_content(model))
        check_onnx(model, path)
        for origin, copy in copies.items():
            copy_atomic(origin, copy)
        writing.result()


def plan_external_copies(source: Source, path: Path, force: bool = False) -> dict[Path, Path]:
    """Return the destination of each external data file for a model at `path`.

    Files that are at their destination already are left out. Raises UsageError where the model or
    a copy would replace the data, the model or the copy of another file, or any file without
    `force`.
    """
    check_place(path, force=True)
    files = CommandFiles()
    origins = {name: (source.folder or Path()) / name for name in source.external_files}
    for origin in origins.values():
        files.add_input(origin)
    files.add_output(path, "the model")
    copies: dict[Path, Path] = {}
    for name, origin in origins.items():
        copy = path.parent / name
        exists = copy.exists()
        if exists and copy.samefile(origin):
            continue
        if exists and not force:
            raise UsageError(
                f"{copy}: the file exists, and the model's external data goes there."
                " Pass --force to replace it, or choose another folder."
            )
        if exists:
            check_place(copy, force)
        role = f"the external data {name}"
        files.add_output(copy, role)
        note_output(copy, role)
        copies[origin] = copy
    return copies
