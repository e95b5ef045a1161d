"""The file of a rewritten model, with its external data."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx

from qdq.errors import ModelError, UsageError
from qdq.files.output import atomic_file, check_output, copy_atomic
from qdq.graph.onnx_checker import find_complaint
from qdq.graph.source import Source, canonical_bytes


def check_onnx(model: onnx.ModelProto, content: bytes, name: Path) -> None:
    """Raise ModelError, for the output `name`, where onnx.checker rejects a model.

    `content` is its serialisation. Plugins are no reason.
    """
    complaint = find_complaint(model, content)
    if complaint:
        raise ModelError(
            f"{name}: onnx.checker rejects the result: {complaint}."
            " Pass a model that passes onnx.checker."
        )


def save(model: onnx.ModelProto, source: Source, path: Path, force: bool = False) -> None:
    """Write a model made from `source` to `path`, with copies of its external data files.

    onnx.checker must pass it. Raises ModelError where it does not, and UsageError where a file
    cannot be written.
    """
    copies = plan_external_copies(source, path, force)
    content = canonical_bytes(model)
    with atomic_file(path) as temporary, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(temporary.write_bytes, content)
        check_onnx(model, content, path)
        for origin, copy in copies.items():
            copy_atomic(origin, copy)
        writing.result()


def plan_external_copies(source: Source, path: Path, force: bool = False) -> dict[Path, Path]:
    """Return the destination of each external data file for a model at `path`.

    Files that are at their destination already are left out.
    Raises UsageError where a copy would replace the output, or another file without `force`.
    """
    folder = source.folder or Path()
    destinations = {folder / name: path.parent / name for name in source.external_files}
    check_output(path, (*destinations, *destinations.values()), force=True)
    copies: dict[Path, Path] = {}
    for origin, copy in destinations.items():
        exists = copy.exists()
        if exists and copy.samefile(origin):
            continue
        if exists and not force:
            raise UsageError(
                f"{copy}: the file exists, and the model's external data goes there."
                " Pass --force to replace it, or choose another folder."
            )
        copies[origin] = copy
    return copies
