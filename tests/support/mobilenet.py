"""MobileNet-V2 with Q/DQ as pytorch-quantization exports it: inverted residuals, Relu6, linear
projections; random weights.
"""

from __future__ import annotations

import numpy as np
import onnx

from tests.support.graphs import build, node

#: Expansion, channels, blocks and first stride of each stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Exported:
    """A graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {
            "zero": np.array(0, np.int8),
            "low": np.array(0, np.float32),
            "high": np.array(6, np.float32),
        }

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(node(op, inputs, f"{name}.out", name, **attributes))
        return f"{name}.out"

    def pair(self, tensor: str) -> str:
        scale = f"{tensor}.scale"
        self.weights[scale] = np.array(0.01 + 0.0001 * (sum(map(ord, tensor)) % 97), np.float32)
        return self.add(
            "DequantizeLinear", self.add("QuantizeLinear", tensor, scale, "zero"), scale, "zero"
        )

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.nodes)}"
        self.weights.update(
            {
                name: np.zeros(shape, np.float32),
                f"{name}.scale": np.full(shape[0], 0.1, np.float32),
                f"{name}.zero": np.zeros(shape[0], np.int8),
            }
        )
        q = self.add("QuantizeLinear", name, f"{name}.scale", f"{name}.zero", axis=0)
        return self.add("DequantizeLinear", q, f"{name}.scale", f"{name}.zero", axis=0)

    def convolution(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        group: int = 1,
        relu6: bool = True,
    ) -> str:
        read, written = channels
        y = self.add(
            "Conv",
            self.pair(x),
            self.weight(written, read // group, kernel, kernel),
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
            group=group,
        )
        name = f"bn{len(self.nodes)}"
        self.weights.update({f"{name}.{part}": np.ones(written, np.float32) for part in "sbmv"})
        y = self.add("BatchNormalization", y, *(f"{name}.{part}" for part in "sbmv"))
        return self.add("Clip", y, "low", "high") if relu6 else y


def mobilenet(residual: bool, batch: int = 1) -> onnx.ModelProto:
    """Return MobileNet-V2 with pairs on every convolution and the classifier, and on the skip
    branches if asked.
    """
    export = Exported()
    x, channels = export.convolution("x", (3, 32), 3, 2), 32
    for expansion, written, blocks, first_stride in STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            skip, wide = x, channels * expansion
            y = export.convolution(x, (channels, wide), 1) if expansion > 1 else x
            y = export.convolution(y, (wide, wide), 3, stride, wide)
            y = export.convolution(y, (wide, written), 1, relu6=False)
            x = (
                export.add("Add", export.pair(skip) if residual else skip, y)
                if stride == 1 and channels == written
                else y
            )
            channels = written
    x = export.convolution(x, (channels, 1280), 1)
    x = export.add("Flatten", export.add("GlobalAveragePool", x))
    x = export.pair(x)
    export.add("Gemm", x, export.weight(1000, 1280), transB=1)
    return build(
        export.nodes,
        {"x": [batch, 3, 224, 224]},
        [export.nodes[-1].output[0]],
        export.weights,
        opset=13,
    )
