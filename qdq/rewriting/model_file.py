"""Writing a rewritten model, with the files of its external data."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx

from qdq.errors import ModelError, UsageError, first_line
from qdq.files.output import atomic_file, check_output, copy_atomic
from qdq.graph.source import Source, canonical_bytes


def check_onnx(content: bytes, name: Path) -> None:
    """Raise ModelError, for the output `name`, where onnx.checker refuses a serialised model."""
    try:
        onnx.checker.check_model(content)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(
            f"{name}: onnx.checker refuses the result: {first_line(error)}; check that the input passes onnx.checker"
        ) from error


def save(model: onnx.ModelProto, source: Source, path: Path, force: bool = False) -> None:
    """Write a model made from `source` to `path` after onnx.checker has passed it; external data files are copied along.

    Raises ModelError where the checker refuses it, UsageError where a file cannot be written.
    """
    copies = plan_external_copies(source, path, force)
    content = canonical_bytes(model)
    with atomic_file(path) as temporary, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(temporary.write_bytes, content)
        if not source.external_files:
            check_onnx(content, path)
        for origin, copy in copies.items():
            copy_atomic(origin, copy)
        writing.result()


def plan_external_copies(source: Source, path: Path, force: bool = False) -> dict[Path, Path]:
    """Return where each external data file of a model must be copied to for an output at `path`; those that lie right are left out.

    Raises UsageError where one would replace another file (unless `force`) or the output itself.
    """
    copies = {
        (source.folder or Path()) / name: path.parent / name for name in source.external_files
    }
    check_output(path, (*copies, *copies.values()), force=True)
    copies = {
        origin: copy
        for origin, copy in copies.items()
        if not (copy.exists() and copy.samefile(origin))
    }
    for copy in copies.values():
        if copy.exists() and not force:
            raise UsageError(
                f"{copy}: exists; the model's external data goes there: pass --force to replace it, or choose another folder"
            )
    return copies
