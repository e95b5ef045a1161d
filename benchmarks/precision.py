"""Cast real models to FP16, and quantize them with FP16 around INT8: a table as Markdown.

    python benchmarks/precision.py --shared ../shared > precision.md
    python benchmarks/precision.py --shared ../shared --forms fp16,int8+fp16 --targets rtx:sm75

For each model, form and target: whether TensorRT-RTX builds it, the weighted layers by the type
that they multiply in, the nodes that rules kept in FP32, kernels, bytes moved, Casts, and the
signal-to-noise ratio of the outputs in ONNX Runtime against the float model. Forms: fp32, fp16,
int8+fp32, int8+fp16, and `other`, a folder of models of the same names that another tool made
(`--other FOLDER`), such as ModelOpt's autocast.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from harness import markdown_head, markdown_row
from results import Subject

import qdq
from qdq.engines.engine import Engine
from qdq.engines.rtx_compiler import Compiler
from qdq.graph.bodies import all_nodes
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.recovery.output_snr import OutputSnr

FORMS = ("fp16", "int8+fp32", "int8+fp16")
TARGETS = ("rtx:sm75", "rtx:sm86", "rtx:sm120")
TYPES = {"Int8": "INT8", "Half": "FP16", "Float": "FP32"}
HEADERS = (
    "model",
    "form",
    "target",
    "INT8 / FP16 / FP32 layers",
    "kept in FP32",
    "kernels",
    "MB moved",
    "Casts",
    "dB",
)
MEASURED = 4


def make_form(subject: Subject, form: str, target: str, other: Path | None) -> tuple[Any, int]:
    """Return the model of a form, and how many nodes rules kept in FP32."""
    if form == "fp32":
        return load(subject.path).model, 0
    if form == "other":
        return load((other or Path()) / subject.path.name).model, 0
    if form == "fp16":
        ranges = qdq.observe(subject.path, qdq.plan(subject.path), subject.calibration())
        amax = {item.tensor: item.amax for item in ranges.by_tensor}
        result = qdq.cast(subject.path, amax=amax)
        return result.model, len(result.plan.kept)
    float_type = form.partition("+")[2]
    quantized = qdq.quantize(
        subject.path, subject.calibration(), targets=target, float_type=float_type
    )
    return quantized.model, len(quantized.cast.plan.kept) if quantized.cast else 0


def describe_engine(engine: Engine) -> tuple[str, str, str]:
    """Return the weighted layers by type, the kernels and the bytes moved."""
    if engine.failure:
        return f"does not build: {engine.failure[:60]}", "-", "-"
    counts: Counter[str] = Counter()
    for layer in engine.layers:
        counts.update(label for dtype, label in TYPES.items() if layer.multiplies(dtype))
    layers = " / ".join(str(counts[label]) for label in TYPES.values())
    return layers, str(engine.kernels), f"{engine.bytes / 1e6:.1f}"


def make_rows(subject: Subject, options: argparse.Namespace, compiler: Compiler) -> None:
    """Print the rows of one model."""
    samples = subject.calibration(1)[:MEASURED]
    snr = OutputSnr(GraphIndex(load(subject.path)), samples)
    shapes = {name: np.shape(values) for name, values in samples[0].items()}
    for form in options.forms.split(","):
        for target in options.targets.split(","):
            try:
                model, kept = make_form(subject, form, target, options.other)
            except (qdq.QdqError, OSError) as error:
                print(markdown_row((subject.name, form, target, str(error)[:80], *"-----")))
                continue
            engine = compiler.build(model, qdq.parse_target(target), shapes)
            casts = sum(node.op_type == "Cast" for _, node in all_nodes(model.graph))
            decibels = f"{snr.measure(model):.1f}"
            layers, kernels, moved = describe_engine(engine)
            cells = (subject.name, form, target, layers, kept, kernels, moved, casts, decibels)
            print(markdown_row(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--models", default="*")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--other", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(options.shared / "tasks"))
    print(markdown_head(HEADERS))
    with Compiler() as compiler, tempfile.TemporaryDirectory():
        for path in sorted((options.shared / "models").glob(f"{options.models}.onnx")):
            make_rows(Subject(path, __import__), options, compiler)


if __name__ == "__main__":
    main()
