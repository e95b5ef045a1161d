"""Predicted engines of ResNet-18 against those that NVIDIA published with trt-engine-explorer
(batch 32, A100).

    python benchmarks/engines.py --engines ../shared/engines

The folder holds `resnet18-a100-b32-{fp32,fp16,qat,qat-residual,qat-residual-qgap}.graph.json` and
`.profile.json`, from NVIDIA/TensorRT, release/8.4 to 11.0,
tools/experimental/trt-engine-explorer/examples/pytorch/resnet/A100. The graphs are rebuilt with
the same Q/DQ (`resnet18.py`); types are compared for every convolution and the Gemm. It prints a
Markdown table and exits with 1 if a type, a stand-alone Q or DQ, or the order by bytes differs, or
a count of Reformat layers differs by more than one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import onnx
from resnet18 import PLACEMENTS, resnet18
from tabulate import tabulate

from qdq.engines.engine import REFORMAT, Engine
from qdq.engines.layer_file import read_layer_file
from qdq.engines.prediction.predictor import predict_engine
from qdq.target import Target

TARGET = Target("trt", 80)
_WEIGHTED = ("Conv", "Gemm")
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def types(engine: Engine, model: onnx.ModelProto) -> dict[str, str]:
    """Return the types that each weighted node reads and writes."""
    names = [n.name for n in model.graph.node if n.op_type in _WEIGHTED]
    layers = {
        name: next((la for la in engine.layers if name in la.nodes and la.kind != REFORMAT), None)
        for name in names
    }
    return {
        name: f"{'+'.join(t.dtype for t in la.inputs)} -> {la.outputs[0].dtype}" if la else "none"
        for name, la in layers.items()
    }


def alone(engine: Engine) -> set[str]:
    """Return the Q and DQ that are layers of their own."""
    return {
        n for la in engine.layers if la.kind == REFORMAT for n in la.nodes if n.startswith(_PAIR)
    }


def milliseconds(path: Path) -> float:
    """Return the sum of a profile's layer times."""
    return sum(entry.get("averageMs", 0.0) for entry in json.loads(path.read_text()))


def compare(folder: Path, placement: str) -> tuple[tuple[object, ...], list[str]]:
    """Return a row of the table, and what differs beyond what the prediction promises."""
    model = resnet18(placement)
    path = folder / f"resnet18-a100-b32-{placement}.graph.json"
    real = read_layer_file(path, TARGET, {n.name: n.name for n in model.graph.node})
    predicted = predict_engine(model, TARGET, allow_fp16=placement != "fp32")
    built_types, predicted_types = types(real, model), types(predicted, model)
    wrong = [
        f"{placement}: {name}: predicted {predicted_types[name]}, is {built_types[name]}"
        for name in built_types
        if predicted_types[name] != built_types[name]
    ]
    wrong += [
        f"{placement}: {name} stands alone in one of the two only"
        for name in sorted(alone(real) ^ alone(predicted))
    ]
    if abs(real.reformats - predicted.reformats) > 1:
        wrong.append(
            f"{placement}: {predicted.reformats} Reformat layers predicted, {real.reformats} built"
        )
    right = sum(predicted_types[name] == built_types[name] for name in built_types)
    took = milliseconds(folder / f"resnet18-a100-b32-{placement}.profile.json")
    counts = (
        f"{right} of {len(built_types)}",
        f"{len(alone(predicted))}, {len(alone(real))}",
        f"{predicted.reformats}, {real.reformats}",
        f"{predicted.kernels}, {real.kernels}",
    )
    return (
        placement,
        *counts,
        f"{predicted.bytes / 1e6:.1f}",
        f"{real.bytes / 1e6:.1f}",
        f"{took:.3f}",
    ), wrong


def main() -> int:
    """Print the table, and what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engines",
        type=Path,
        required=True,
        help="folder of the published engines, such as ../shared/engines",
    )
    folder = parser.parse_args().engines
    results = [compare(folder, placement) for placement in PLACEMENTS]
    rows = [row for row, _ in results]
    headers = (
        "engine",
        "types right",
        "stand-alone Q/DQ",
        "Reformat layers",
        "kernels",
        "MB predicted",
        "MB real",
        "ms, sum of its layers",
    )
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    print("\nPairs of numbers: predicted, real.")
    wrong = [line for _, lines in results for line in lines]
    by_bytes, by_time = (
        sorted(PLACEMENTS, key=lambda p: float(next(r for r in rows if r[0] == p)[column]))
        for column in (5, 7)
    )
    if by_bytes != by_time:
        wrong.append(f"by predicted bytes the order is {by_bytes}, by time {by_time}")
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
