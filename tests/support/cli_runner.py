"""A tiny model, samples for it, and the command line in this process."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qdq.cli import main

SHAPE = (4, 8, 8)


def tiny_model() -> onnx.ModelProto:
    """Return conv -> relu -> flatten -> gemm at opset 17 with seeded weights.

    `x` is float32 [batch,4,8,8] and `y` is [batch,5].
    """
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": (6, 4, 3, 3),
        "conv.bias": (6,),
        "gemm.weight": (5, 6 * 6 * 6),
        "gemm.bias": (5,),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "gemm.weight", "gemm.bias"], ["y"], name="gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model and return its path."""
    path.write_bytes(model.SerializeToString())
    return path


def samples(folder: Path, n: int = 2) -> Path:
    """Write `n` .npz files of one seeded sample each for `tiny_model`, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for i in range(n):
        np.savez(folder / f"{i}.npz", x=rng.standard_normal((1, *SHAPE)).astype(np.float32))
    return folder


def run(*argv: object) -> tuple[int, str, str]:
    """Run `qdq` with some arguments and return its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


def refused(folder: Path, *argv: object) -> str:
    """Run `qdq`, assert that it fails as documented and leaves `folder` as it was, and return its message.

    As documented: exit code 2, nothing on standard output, one line that begins with "qdq: " on
    standard error, and nothing that a library in C++ writes there.
    """
    before = contents(folder)
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as native:
        os.dup2(native.fileno(), 2)
        try:
            code, out, err = run(*argv)
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
        native.seek(0)
        noise = native.read()
    assert (code, out, noise) == (2, "", b""), err
    assert err.startswith("qdq: "), err
    assert err.index("\n") == len(err) - 1, err
    assert contents(folder) == before
    return err


def contents(folder: Path) -> dict[str, object]:
    """Return the bytes of files, the targets of links and None for folders, by relative path."""
    return {str(path.relative_to(folder)): _content(path) for path in folder.rglob("*")}


def _content(path: Path) -> object:
    if path.is_symlink():
        return path.readlink()
    return path.read_bytes() if path.is_file() else None
