"""Processor time and peak memory of qdq's commands on a transformer of 2.1 GB, or of another size.

Run it from anywhere, with the interpreter that has qdq's dependencies:

    python benchmarks/large_transformer.py [--layers 16] [--half] [--folder FOLDER]

The model has random weights in external data: blocks of six matrices of 2048 values (attention and
feed-forward), 134 MB in all. With --half it is FP16, and each weight is in a file of its own.
`max` is `quantize --method max --weights max` without the guard and recovery; the other rows are
beside it. Each row is one whole process. It prints a Markdown table and judges nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
from harness import PLAIN, Ended, Run, markdown_head, markdown_row, measure
from onnx import helper

_WIDTH, _INNER, _TOKENS, _HEADS = 2048, 4096, 64, 16
_SAMPLES = 4
_MEGABYTE, _MIB = 1e6, 1 << 20


def main() -> None:
    """Print one row for each command."""
    parser = argparse.ArgumentParser(description="Measure qdq on a large transformer.")
    parser.add_argument("--layers", type=int, default=16, help="blocks of 134 MB (default: 16)")
    parser.add_argument("--half", action="store_true", help="FP16, with a file for each weight")
    parser.add_argument("--folder", type=Path, help="work here and keep the files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qdq-transformer-") as name:
        folder = arguments.folder or Path(name)
        model = _prepare(folder, arguments.layers, arguments.half)
        files = [path for path in folder.rglob("*") if path.name != "samples.npz"]
        size = sum(path.stat().st_size for path in files)
        print(f"{size / _MEGABYTE:.0f} MB, {_SAMPLES} samples\n")
        print(markdown_head(("command", "processor s", "of max", "peak MiB", "of the model")))
        reference = 0.0
        for title, command in _commands(folder, model).items():
            run = _measure(command)
            reference = reference or run.processor_seconds
            ratio = run.processor_seconds / reference
            memory = run.mebibytes * _MIB / size
            cells = (f"{run.processor_seconds:.1f}", f"{ratio:.2f}", f"{run.mebibytes:.0f}")
            print(markdown_row((title, *cells, f"{memory:.2f}")), flush=True)


def _commands(folder: Path, model: Path) -> dict[str, tuple[object, ...]]:
    quantized = folder / "quantized.onnx"
    output = ("-o", quantized, "--force")
    data = ("--data", folder / "samples.npz", "--target", "rtx:sm86")
    return {
        "quantize, max": ("quantize", model, *data, *output, *PLAIN, *_MAX),
        "quantize, default": ("quantize", model, *data, *output),
        "check": ("check", quantized),
        "diff": ("diff", model, quantized),
        "strip": ("strip", quantized, "-o", folder / "stripped.onnx", "--force"),
        "validate": (
            "validate",
            model,
            quantized,
            "--data",
            folder / "samples.npz",
            "--samples",
            1,
        ),
    }


_MAX = ("--method", "max", "--weights", "max")


def _measure(command: tuple[object, ...]) -> Run:
    line = shlex.join([sys.executable, "-m", "qdq", *map(str, command)])
    run = measure(["sh", "-c", f"{line}; test $? -le 1"])
    if isinstance(run, Ended):
        sys.exit(f"{line}: {run.reason}")
    return run


def _prepare(folder: Path, layers: int, is_half: bool) -> Path:
    """Write the model, unless it is there, and the samples."""
    # in another process: a child counts the memory of this one as its own until it starts a program
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_write, (folder, layers, is_half))


def _write(folder: Path, layers: int, is_half: bool) -> Path:
    model = folder / "model.onnx"
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((_SAMPLES, _TOKENS, _WIDTH), np.float32)
    dtype = np.float16 if is_half else np.float32
    np.savez(folder / "samples.npz", x=samples.astype(dtype))
    if not model.exists():
        onnx.save_model(
            _Transformer(rng, np.dtype(dtype)).build(layers),
            model,
            save_as_external_data=True,
            all_tensors_to_one_file=not is_half,
            location=None if is_half else "model.onnx.data",
        )
    return model


class _Transformer:
    """The nodes and weights of a decoder without embeddings."""

    def __init__(self, rng: np.random.Generator, dtype: np.dtype[np.floating]) -> None:
        self._rng = rng
        self._dtype = dtype
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def build(self, layers: int) -> onnx.ModelProto:
        """Return the model of `layers` blocks."""
        self._weights.append(onnx.numpy_helper.from_array(np.ones(_WIDTH, self._dtype), "ones"))
        shape = np.array([0, 0, _HEADS, _WIDTH // _HEADS])
        self._weights.append(onnx.numpy_helper.from_array(shape, "heads"))
        joined = np.array([0, 0, _WIDTH])
        self._weights.append(onnx.numpy_helper.from_array(joined, "joined"))
        tensor = "x"
        for layer in range(layers):
            tensor = self._add_attention(tensor, f"layer{layer}/attention")
            tensor = self._add_feed_forward(tensor, f"layer{layer}/feed_forward")
        dims = [1, _TOKENS, _WIDTH]
        elem_type = helper.np_dtype_to_tensor_dtype(self._dtype)
        graph = helper.make_graph(
            self._nodes,
            "transformer",
            [helper.make_tensor_value_info("x", elem_type, dims)],
            [helper.make_tensor_value_info(tensor, elem_type, dims)],
            self._weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _add(self, operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _add_product(self, tensor: str, name: str, rows: int, columns: int) -> str:
        values = self._rng.standard_normal((rows, columns), np.float32) / np.float32(rows**0.5)
        weight = values.astype(self._dtype)
        self._weights.append(onnx.numpy_helper.from_array(weight, f"{name}/weight"))
        return self._add("MatMul", [tensor, f"{name}/weight"], name)

    def _add_attention(self, tensor: str, name: str) -> str:
        normal = self._add("LayerNormalization", [tensor, "ones"], f"{name}/norm")
        heads: list[str] = []
        for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            product = self._add_product(normal, f"{name}/{part}", _WIDTH, _WIDTH)
            split = self._add("Reshape", [product, "heads"], f"{name}/{part}_heads")
            heads.append(self._add("Transpose", [split], f"{name}/{part}_moved", perm=perm))
        query, key, value = heads
        scores = self._add("MatMul", [query, key], f"{name}/scores")
        weights = self._add("Softmax", [scores], f"{name}/softmax", axis=-1)
        mixed = self._add("MatMul", [weights, value], f"{name}/mixed")
        moved = self._add("Transpose", [mixed], f"{name}/moved", perm=[0, 2, 1, 3])
        joined = self._add("Reshape", [moved, "joined"], f"{name}/joined")
        output = self._add_product(joined, f"{name}/output", _WIDTH, _WIDTH)
        return self._add("Add", [tensor, output], f"{name}/sum")

    def _add_feed_forward(self, tensor: str, name: str) -> str:
        normal = self._add("LayerNormalization", [tensor, "ones"], f"{name}/norm")
        inner = self._add_product(normal, f"{name}/up", _WIDTH, _INNER)
        active = self._add("Relu", [inner], f"{name}/relu")
        output = self._add_product(active, f"{name}/down", _INNER, _WIDTH)
        return self._add("Add", [tensor, output], f"{name}/sum")


if __name__ == "__main__":
    main()
