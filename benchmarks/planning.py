"""Time of `qdq plan` on generated graphs of 5, 10, 20 and 40 thousand nodes: residual blocks,
Concats and attention in turns.

Run it from anywhere, with the interpreter that has qdq's dependencies:

    python benchmarks/planning.py [--nodes 5000 --nodes 10000 ...] [--repeats 3]

Each time is a whole process that reads the model and writes its plan to a file, after a first run
that does not count. It prints a Markdown table and judges nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import markdown_head, markdown_row, measure_python, median
from onnx import TensorProto, helper, numpy_helper

_SIZES = (5_000, 10_000, 20_000, 40_000)
_CHANNELS, _SIDE = 16, 8
_OPSET, _IR = 17, 8
_HEADERS = (
    "nodes",
    "edges that get a pair",
    "median s",
    "of processor time",
    "processor ms for 1,000 nodes",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure qdq plan on generated graphs.")
    parser.add_argument(
        "--nodes",
        type=int,
        action="append",
        help="size of a graph; may be given several times (default: 5, 10, 20 and 40 thousand)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each (default: %(default)s)"
    )
    arguments = parser.parse_args()
    print(markdown_head(_HEADERS))
    with tempfile.TemporaryDirectory(prefix="qdq-planning-") as name:
        for nodes in arguments.nodes or _SIZES:
            print(markdown_row(_row(Path(name), nodes, arguments.repeats)), flush=True)


def network(nodes: int) -> onnx.ModelProto:
    """Return a model of at least so many nodes; what is above is less than one round of blocks."""
    net = _Network()
    tensor = "x"
    while len(net.nodes) < nodes:
        for block in (
            net.residual,
            net.residual,
            net.concat,
            net.attention,
            net.projection,
            net.squeeze_excite,
        ):
            tensor = block(tensor)
    return net.model(tensor)


class _Network:
    """Nodes and weights under construction; every block keeps the shape [1, channels, side,
    side].
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def residual(self, x: str) -> str:
        branch = self._convolution(self._activated(x, 1), 3)
        return self._node("Relu", [self._node("Add", [branch, x])])

    def projection(self, x: str) -> str:
        branch = self._convolution(self._activated(x, 3), 1)
        return self._node("Relu", [self._node("Add", [branch, self._convolution(x, 1)])])

    def concat(self, x: str) -> str:
        branches = [
            self._activated(x, 1),
            self._activated(self._activated(x, 1), 3),
            self._node("MaxPool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        ]
        return self._convolution(
            self._node("Concat", branches, axis=1), 1, len(branches) * _CHANNELS
        )

    def squeeze_excite(self, x: str) -> str:
        pooled = self._node("GlobalAveragePool", [x])
        gate = self._node("Sigmoid", [self._convolution(self._activated(pooled, 1), 1)])
        return self._node("Mul", [x, gate])

    def attention(self, x: str) -> str:
        """Normalisation, attention and a feed-forward layer over the plane's places, each with its
        residual Add.
        """
        flat = self._node(
            "Transpose",
            [self._node("Reshape", [x, self._integers(1, _CHANNELS, -1)])],
            perm=[0, 2, 1],
        )
        normal = self._normalised(flat)
        query, key, value = (self._linear(normal) for _ in range(3))
        scores = self._node(
            "Mul",
            [
                self._node("MatMul", [query, self._node("Transpose", [key], perm=[0, 2, 1])]),
                self._weight(),
            ],
        )
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), value])
        flat = self._node("Add", [flat, self._linear(mixed)])
        hidden = self._node("Relu", [self._linear(self._normalised(flat))])
        flat = self._node("Add", [flat, self._linear(hidden)])
        return self._node(
            "Reshape",
            [
                self._node("Transpose", [flat], perm=[0, 2, 1]),
                self._integers(1, _CHANNELS, _SIDE, _SIDE),
            ],
        )

    def model(self, output: str) -> onnx.ModelProto:
        shape = [1, _CHANNELS, _SIDE, _SIDE]
        source = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "generated", [source], [result], self._weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR
        )

    def _node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(
                operator, inputs, [output], name=f"{operator}_{len(self.nodes)}", **attributes
            )
        )
        return output

    def _activated(self, x: str, window: int) -> str:
        return self._node("Relu", [self._convolution(x, window)])

    def _convolution(self, x: str, window: int, channels: int = _CHANNELS) -> str:
        weight = self._weight(_CHANNELS, channels, window, window)
        return self._node(
            "Conv",
            [x, weight, self._weight(_CHANNELS)],
            kernel_shape=[window, window],
            pads=[window // 2] * 4,
        )

    def _linear(self, x: str) -> str:
        return self._node(
            "Add",
            [
                self._node("MatMul", [x, self._weight(_CHANNELS, _CHANNELS)]),
                self._weight(_CHANNELS),
            ],
        )

    def _normalised(self, x: str) -> str:
        return self._node(
            "LayerNormalization", [x, self._weight(_CHANNELS), self._weight(_CHANNELS)], axis=-1
        )

    def _weight(self, *shape: int) -> str:
        return self._store(self._random.standard_normal(shape, np.float32))

    def _integers(self, *values: int) -> str:
        return self._store(np.asarray(values, np.int64))

    def _store(self, values: Any) -> str:
        self._weights.append(numpy_helper.from_array(np.asarray(values), f"w{len(self._weights)}"))
        return self._weights[-1].name


def _row(folder: Path, nodes: int, repeats: int) -> list[str]:
    model = network(nodes)
    path, plan = folder / f"{nodes}.onnx", folder / "plan.yaml"
    onnx.save(model, path)
    command = ["-m", "qdq", "plan", str(path), "-o", str(plan), "--force"]
    runs = [measure_python(command) for _ in range(repeats + 1)]
    typical = median(runs[1:])
    planned = sum("int8-" in line for line in plan.read_text().splitlines())
    size = len(model.graph.node)
    return [
        f"{size:,}",
        f"{planned:,}",
        f"{typical.seconds:.2f}",
        f"{typical.processor_seconds:.2f}",
        f"{1e6 * typical.processor_seconds / size:.0f}",
    ]


if __name__ == "__main__":
    main()
