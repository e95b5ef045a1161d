"""ResNet-18 with the Q/DQ of the engines that NVIDIA published with trt-engine-explorer, random
weights.

The node names are those of the published engines: torch's exporter numbers every node, constants
and batch norms included, so the counter below counts nodes that are not built too.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PLACEMENTS = ("fp32", "fp16", "qat", "qat-residual", "qat-residual-qgap")
BATCH, CLASSES = 32, 1000
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class _Export:
    """A graph under construction, with torch's numbering."""

    def __init__(self, placement: str) -> None:
        self.pairs = placement.startswith("qat")
        self.residual = "residual" in placement
        self.pooled = "qgap" in placement
        self.count = 0
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)
        self.scales: dict[str, str] = {}

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op}_{self.count}"
        self.count += 1
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def weight(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def quantized(self, tensor: str) -> str:
        """Return the tensor behind a pair; every pair on one tensor has the same scale."""
        if not self.pairs:
            return tensor
        scale = self.scales.setdefault(tensor, "")
        if not scale:
            scale = self.scales[tensor] = self.weight(
                f"scale of {tensor}", np.array(0.01 + 0.001 * len(self.scales), np.float32)
            )
        self.count += 2
        q = self.add("QuantizeLinear", [tensor, scale, "zero"])
        self.count += 2
        return self.add("DequantizeLinear", [q, scale, "zero"])

    def quantized_weight(self, name: str, shape: tuple[int, ...]) -> str:
        values = (self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(
            np.float32
        )
        self.weight(name, values)
        if not self.pairs:
            return name
        scale = self.weight(
            f"scale of {name}", np.abs(values).reshape(shape[0], -1).max(1) / np.float32(127)
        )
        zero = self.weight(f"zero of {name}", np.zeros(shape[0], np.int8))
        self.count += 1
        q = self.add("QuantizeLinear", [name, scale, zero], axis=0)
        return self.add("DequantizeLinear", [q, scale, zero], axis=0)

    def convolution(self, x: str, layer: str, shape: tuple[int, int, int], stride: int) -> str:
        out, read, kernel = shape
        x, w = (
            self.quantized(x),
            self.quantized_weight(f"{layer}.weight", (out, read, kernel, kernel)),
        )
        around = kernel // 2
        y = self.add(
            "Conv", [x, w], strides=[stride] * 2, pads=[around] * 4, kernel_shape=[kernel] * 2
        )
        if not self.pairs:  # without pairs the exporter folds batch norm into the weights
            return y
        norm = [
            self.weight(f"{layer}.{part}", np.ones(out, np.float32))
            for part in ("scale", "bias", "mean", "var")
        ]
        return self.add("BatchNormalization", [y, *norm])

    def block(self, x: str, name: str, channels: int, stride: int) -> str:
        read = channels // stride if stride > 1 else channels
        y = self.add("Relu", [self.convolution(x, f"{name}.conv1", (channels, read, 3), stride)])
        y = self.convolution(y, f"{name}.conv2", (channels, channels, 3), 1)
        if stride > 1:
            x = self.convolution(x, f"{name}.downsample.0", (channels, read, 1), stride)
        skip = self.quantized(x) if self.residual else x
        return self.add("Relu", [self.add("Add", [y, skip])])


def resnet18(placement: str) -> onnx.ModelProto:
    """Return ResNet-18, batch 32, as one of PLACEMENTS; ``fp16`` is the graph of ``fp32``: its
    engine was built with FP16 allowed.
    """
    export = _Export(placement)
    export.weight("zero", np.array(0, np.int8))
    x = export.add("Relu", [export.convolution("input.1", "conv1", (64, 3, 7), 2)])
    x = export.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, (channels, stride) in enumerate(_STAGES, 1):
        for block in range(2):
            x = export.block(x, f"layer{stage}.{block}", channels, stride if block == 0 else 1)
    x = export.add(
        "Flatten", [export.add("GlobalAveragePool", [export.quantized(x) if export.pooled else x])]
    )
    x = export.quantized(x)
    w = export.quantized_weight("fc.weight", (CLASSES, 512))
    bias = export.weight("fc.bias", np.zeros(CLASSES, np.float32))
    export.add("Gemm", [x, w, bias], transB=1)
    export.nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        export.nodes, "resnet18",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [BATCH, 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, CLASSES])],
        export.weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
