"""qdq's default placement against ONNX Runtime's with its TensorRT options: what TensorRT-RTX
makes of each for rtx:sm86.

Run it with the interpreter that has qdq's dependencies, on a folder of float models such as
`architectures.py` writes:

    python benchmarks/placements.py --models FOLDER [--only GLOB] [--rules FOLDER] [--work FOLDER]

It prints a Markdown table. Both placements are calibrated on one sample of noise, for the values
do not change the engine. What is half quantized or inside a fusion is counted here from the files
alone, without qdq's own code.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
from harness import markdown_head, markdown_row
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import qdq
from qdq.engines.engine import Engine
from qdq.engines.rtx_compiler import build_engine

_TARGET = qdq.parse_target("rtx:sm86")
_MEGABYTE = 1e6

#: What NVIDIA ModelOpt lets ONNX Runtime quantize, and the options it sets for TensorRT
#: (modelopt/onnx/quantization, ort_utils.py and int8.py).
_OPERATORS = (
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "MaxPool",
    "Mul",
)
_OPTIONS = {
    "QuantizeBias": False,
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "OpTypesToExcludeOutputQuantization": list(_OPERATORS),
    "AddQDQPairToWeight": True,
    "DedicatedQDQPair": False,
    "QDQDisableWeightAdjustForInt32Bias": True,
    "QDQOpTypePerChannelSupportToAxis": {"Conv": 0, "ConvTranspose": 1},
}

_PAIR = ("QuantizeLinear", "DequantizeLinear")
#: Operators that multiply weights, and the slots that must all be quantized or none; the state
#: that a recurrent layer multiplies with R never leaves it.
_WEIGHTED = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (0, 1),
    "GRU": (0, 1),
    "RNN": (0, 1),
}
_MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_FOLDED = ("BatchNormalization", "Add", "Mul", "Sub", "Div")
_ACTIVATIONS = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Gelu",
    "Softplus",
    "Mish",
)


class Placed(NamedTuple):
    """One placement of one model, and its engine."""

    pairs: int
    quantized: int
    half: int
    inside: int
    engine: Engine


class Row(NamedTuple):
    """One line of the table."""

    model: str
    weighted: int
    float_engine: Engine
    qdq_placed: Placed
    ort_placed: Placed


class Noise(CalibrationDataReader):  # type: ignore[misc] # onnxruntime carries no types
    """One sample of noise; integer inputs are small."""

    def __init__(self, model: onnx.ModelProto) -> None:
        stored = {t.name for t in model.graph.initializer}
        fed = [i for i in model.graph.input if i.name not in stored]
        self._samples = iter([{i.name: _noise(i.type.tensor_type) for i in fed}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._samples, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare qdq's placement with ONNX Runtime's on TensorRT-RTX engines."
    )
    parser.add_argument("--models", type=Path, required=True, help="folder of float .onnx files")
    parser.add_argument("--only", default="*", help="glob of the models to compare (default: all)")
    parser.add_argument(
        "--rules",
        action="append",
        default=[],
        help="rule set or folder for qdq (default: tensorrt); may be given several times",
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="keep engines of models that did not change here, and the quantized models",
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="qdq-placements-") as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        paths = [
            p
            for p in sorted(arguments.models.glob("*.onnx"))
            if fnmatchcase(p.stem, arguments.only)
        ]
        rows = [_compare(path, work, arguments.rules) for path in paths]
    print(markdown_head(_HEAD))
    for row in rows:
        print(markdown_row(_cells(row)))


_HEAD = (
    "model",
    "weighted nodes, quantized by qdq / ORT",
    "pairs on activations, qdq / ORT",
    "kernels, float / qdq / ORT",
    "MB moved, float / qdq / ORT",
    "half quantized, qdq / ORT",
    "pairs inside a fusion, qdq / ORT",
    "qdq no worse",
)


def _cells(row: Row) -> list[str]:
    qdq_placed, ort_placed = row.qdq_placed, row.ort_placed
    engines = (row.float_engine, qdq_placed.engine, ort_placed.engine)
    worse = [
        word
        for word, more in (
            ("kernels", _more(engines, "kernels")),
            ("bytes", _more(engines, "bytes")),
        )
        if more
    ]
    return [
        row.model,
        f"{row.weighted}, {qdq_placed.quantized} / {ort_placed.quantized}",
        f"{qdq_placed.pairs} / {ort_placed.pairs}",
        " / ".join(e.failure or str(e.kernels) for e in engines),
        " / ".join("-" if e.failure else f"{e.bytes / _MEGABYTE:.2f}" for e in engines),
        f"{qdq_placed.half} / {ort_placed.half}",
        f"{qdq_placed.inside} / {ort_placed.inside}",
        f"more {' and '.join(worse)}" if worse else "yes",
    ]


def _more(engines: Sequence[Engine], what: str) -> bool:
    return bool(getattr(engines[1], what) > getattr(engines[2], what))


def _compare(path: Path, work: Path, rules: list[str]) -> Row:
    start = time.perf_counter()
    model = onnx.load(path)
    result = qdq.quantize(
        path, "noise", rules=qdq.load_rules(rules) if rules else None, method="max"
    )
    qdq_placed = work / f"{path.stem}.qdq.onnx"
    qdq.save(result.model, result.source, qdq_placed, force=True)
    ort_placed = work / f"{path.stem}.ort.onnx"
    if not ort_placed.exists():
        _quantize_static(path, model, ort_placed)
    row = Row(
        path.stem,
        _weighted(model),
        _engine(path, work),
        _placed(model, qdq_placed, work),
        _placed(model, ort_placed, work),
    )
    print(f"{path.stem}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return row


def _quantize_static(path: Path, model: onnx.ModelProto, out: Path) -> None:
    quantize_static(
        path,
        out,
        Noise(model),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_OPERATORS),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options=_OPTIONS,
    )


def _noise(arguments: onnx.TypeProto.Tensor) -> np.ndarray[Any, Any]:
    shape = [d.dim_value or 1 for d in arguments.shape.dim]
    random = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(arguments.elem_type)
    return (
        random.standard_normal(shape).astype(kind)
        if kind.kind == "f"
        else random.integers(0, 2, shape).astype(kind)
    )


def _engine(path: Path, work: Path) -> Engine:
    """Return the engine of a file, from `work` where the same bytes were built before."""
    kept = work / f"{hashlib.sha256(path.read_bytes()).hexdigest()}.{_TARGET}.json"
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=Engine)
    engine = build_engine(qdq.load(path), _TARGET)
    kept.write_bytes(msgspec.json.encode(engine))
    return engine


def _placed(model: onnx.ModelProto, path: Path, work: Path) -> Placed:
    quantized = Graph(onnx.load(path))
    return Placed(
        sum(
            n.op_type == "QuantizeLinear" and not quantized.is_constant(n.input[0])
            for n in quantized.nodes
        ),
        sum(all(quantized.operands(n)) for n in quantized.weighted()),
        sum(len(set(quantized.operands(n))) > 1 for n in quantized.weighted()),
        _inside_fusions(Graph(model), quantized),
        _engine(path, work),
    )


class Graph:
    """Producers, readers and constants of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.outputs = {o.name for o in model.graph.output}
        self.producers = {o: n for n in self.nodes for o in n.output if o}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for slot, tensor in enumerate(node.input):
                self.readers.setdefault(tensor, []).append((node, slot))
        self._constants = {t.name for t in model.graph.initializer} | {""}
        for node in self.nodes:
            if all(i in self._constants for i in node.input):
                self._constants.update(node.output)

    def is_constant(self, tensor: str) -> bool:
        return tensor in self._constants

    def weighted(self) -> Iterator[onnx.NodeProto]:
        """Yield the weighted nodes that compute something while the model runs."""
        yield from (
            n
            for n in self.nodes
            if n.op_type in _WEIGHTED and not all(self.is_constant(i) for i in n.input)
        )

    def operands(self, node: onnx.NodeProto) -> list[bool]:
        """Return for each operand of a weighted node whether it comes from a DequantizeLinear, be
        it through operators that only move values.
        """
        return [self._dequantized(node.input[slot]) for slot in _WEIGHTED[node.op_type]]

    def _dequantized(self, tensor: str) -> bool:
        while (node := self.producers.get(tensor)) is not None and node.op_type in _MOVES:
            tensor = node.input[0]
        return node is not None and node.op_type == "DequantizeLinear"

    def computed(self, node: onnx.NodeProto) -> list[str]:
        return [i for i in node.input if not self.is_constant(i)]


def _weighted(model: onnx.ModelProto) -> int:
    return sum(1 for _ in Graph(model).weighted())


def _inside_fusions(before: Graph, after: Graph) -> int:
    """Count the pairs between a weighted node and its bias, normalisation or activation, and on
    the convolution's side of a residual Add.
    """
    paired = _paired_edges(before, after)
    count = 0
    for node in before.weighted():
        count += sum(edge in paired for edge in _epilogue(before, node))
    for add in before.nodes:
        if add.op_type == "Add" and len(set(before.computed(add))) == 2:
            fused = [
                (add.output[0], slot) in paired
                for slot, tensor in enumerate(add.input)
                if _is_backbone(before, tensor)
            ]
            count += bool(fused) and all(fused)
    return count


def _paired_edges(before: Graph, after: Graph) -> set[tuple[str, int]]:
    """Return the edges of `before`, as (first output of the reader, slot), whose tensor comes from
    a pair in `after`.
    """
    rewritten = {n.output[0]: n for n in after.nodes}
    paired = set()
    for node in before.nodes:
        for slot, tensor in enumerate(rewritten[node.output[0]].input):
            producer = after.producers.get(tensor)
            if (
                tensor != node.input[slot]
                and producer is not None
                and producer.op_type == "DequantizeLinear"
            ):
                paired.add((node.output[0], slot))
    return paired


def _epilogue(graph: Graph, weighted: onnx.NodeProto) -> Iterator[tuple[str, int]]:
    """Yield the edges inside what is fused with a weighted node: operators whose computed inputs
    all come out of it.
    """
    inside = set(weighted.output[:1])
    grown = list(inside)
    waiting: list[tuple[str, int]] = []
    while grown:
        for node, slot in graph.readers.get(grown.pop(), []):
            if node.op_type not in (*_FOLDED, *_ACTIVATIONS):
                continue
            waiting.append((node.output[0], slot))
            if node.output[0] not in inside and all(i in inside for i in graph.computed(node)):
                inside.add(node.output[0])
                grown.append(node.output[0])
    yield from ((output, slot) for output, slot in dict.fromkeys(waiting) if output in inside)


def _is_backbone(graph: Graph, tensor: str) -> bool:
    """Whether a tensor comes from a weighted node through nothing but bias and normalisation, and
    no one else reads on the way.
    """
    while (
        (node := graph.producers.get(tensor)) is not None
        and len(graph.readers[tensor]) == 1
        and tensor not in graph.outputs
    ):
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return True
        computed = graph.computed(node)
        if node.op_type not in _FOLDED or len(computed) != 1:
            return False
        tensor = computed[0]
    return False


if __name__ == "__main__":
    main()
