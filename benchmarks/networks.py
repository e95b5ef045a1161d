"""Networks of real size with random weights, for the benchmarks: `resnet50("resnet50.onnx")`
writes one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR, _SEED = 17, 8, 0
_CLASSES, _SIDE = 1000, 224
#: Blocks and inner channels of the four stages; a block gives four times as many (He et al. 2016,
#: arXiv:1512.03385, table 1).
_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
_WIDENING = 4
#: Relative to He's initialisation, so that activations stay of order 1 through the max-pool and
#: sixteen Adds.
_BRANCH_GAIN, _SKIP_GAIN = 0.25, 0.7
_BIAS = 0.1
#: MobileNet-V2's stages: expansion, channels, blocks and first stride (Sandler et al. 2018,
#: arXiv:1801.04381, table 2).
_INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def resnet50(path: str | Path) -> None:
    """Write ResNet-50 as an exporter leaves it, normalisations folded: `image` float32 [batch, 3,
    224, 224] -> `scores` [batch, 1000].
    """
    net = _Network(_SEED)
    tensor = net.relu(net.convolution("stem", "image", (64, 3, 7), stride=2))
    tensor = net.node(
        "MaxPool", "stem_pool", [tensor], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    channels = 64
    for stage, (blocks, inner) in enumerate(_STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            tensor = net.block(f"layer{stage + 1}.{block}", tensor, (channels, inner), stride)
            channels = inner * _WIDENING
    net.classifier(tensor, channels)
    onnx.save(net.model("resnet50"), path)


def mobilenet_v2(path: str | Path) -> None:
    """Write MobileNet-V2 as an exporter leaves it, normalisations folded: `image` float32 [batch,
    3, 224, 224] -> `scores` [batch, 1000].
    """
    net = _Network(_SEED)
    tensor, channels = net.relu6(net.convolution("stem", "image", (32, 3, 3), stride=2)), 32
    for stage, (expansion, written, blocks, first_stride) in enumerate(_INVERTED):
        for block in range(blocks):
            tensor = net.inverted(
                f"stage{stage}.{block}",
                tensor,
                (channels, channels * expansion, written),
                1 if block else first_stride,
            )
            channels = written
    tensor = net.relu6(net.convolution("head", tensor, (1280, channels, 1)))
    net.classifier(tensor, 1280)
    onnx.save(net.model("mobilenet_v2"), path)


class _Network:
    """Nodes and seeded weights of a network that is being built; every method returns the name of
    the tensor it made.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def relu6(self, tensor: str) -> str:
        """Add a Clip to [0, 6], whose bounds all of them share."""
        names = ("relu6.low", "relu6.high")
        if not any(weight.name == names[0] for weight in self._weights):
            self._weights.extend(
                numpy_helper.from_array(np.array(bound, np.float32), name)
                for name, bound in zip(names, (0, 6), strict=True)
            )
        self._nodes.append(
            helper.make_node("Clip", [tensor, *names], [f"{tensor}_relu6"], name=f"{tensor}_clip")
        )
        return f"{tensor}_relu6"

    def node(self, operator: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self._nodes.append(
            helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes)
        )
        return f"{name}_out"

    def relu(self, tensor: str) -> str:
        return self.node("Relu", f"{tensor.removesuffix('_out')}_relu", [tensor])

    def convolution(
        self,
        name: str,
        tensor: str,
        shape: tuple[int, int, int],
        stride: int = 1,
        gain: float = 1.0,
        group: int = 1,
    ) -> str:
        """Add a square convolution; `shape` is output channels, input channels of one group and
        window.
        """
        outputs, inputs, window = shape
        names = self._weight_and_bias(name, (outputs, inputs, window, window), gain)
        pads = [window // 2] * 4
        return self.node(
            "Conv",
            name,
            [tensor, *names],
            kernel_shape=[window, window],
            strides=[stride, stride],
            pads=pads,
            group=group,
        )

    def inverted(self, name: str, tensor: str, channels: tuple[int, int, int], stride: int) -> str:
        """Add an inverted residual: 1x1 where it widens, 3x3 for each channel, 1x1 without
        activation, and the skip where shapes agree.
        """
        given, wide, written = channels
        branch = (
            self.relu6(self.convolution(f"{name}.expand", tensor, (wide, given, 1)))
            if wide > given
            else tensor
        )
        branch = self.relu6(
            self.convolution(f"{name}.depthwise", branch, (wide, 1, 3), stride, group=wide)
        )
        branch = self.convolution(f"{name}.project", branch, (written, wide, 1))
        return (
            self.node("Add", f"{name}.add", [tensor, branch])
            if stride == 1 and given == written
            else branch
        )

    def block(self, name: str, tensor: str, channels: tuple[int, int], stride: int) -> str:
        """Add a bottleneck block: 1x1, 3x3, 1x1 and the skip, which is a convolution where the
        shape changes.
        """
        given, inner = channels
        wide = inner * _WIDENING
        branch = self.relu(self.convolution(f"{name}.conv1", tensor, (inner, given, 1)))
        branch = self.relu(self.convolution(f"{name}.conv2", branch, (inner, inner, 3), stride))
        branch = self.convolution(f"{name}.conv3", branch, (wide, inner, 1), gain=_BRANCH_GAIN)
        skip = (
            tensor
            if given == wide
            else self.convolution(
                f"{name}.downsample", tensor, (wide, given, 1), stride, _SKIP_GAIN
            )
        )
        return self.relu(self.node("Add", f"{name}.add", [branch, skip]))

    def classifier(self, tensor: str, channels: int) -> None:
        flat = self.node(
            "Flatten", "flatten", [self.node("GlobalAveragePool", "pool", [tensor])], axis=1
        )
        names = self._weight_and_bias("fc", (_CLASSES, channels), 1.0)
        self._nodes.append(
            helper.make_node("Gemm", [flat, *names], ["scores"], name="fc", transB=1)
        )

    def model(self, name: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info(
            "image", TensorProto.FLOAT, ["batch", 3, _SIDE, _SIDE]
        )
        result = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", _CLASSES])
        graph = helper.make_graph(self._nodes, name, [image], [result], self._weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR
        )

    def _weight_and_bias(self, name: str, shape: tuple[int, ...], gain: float) -> list[str]:
        deviation = gain * np.sqrt(2.0 / np.prod(shape[1:]))
        return [
            self._store(f"{name}.weight", shape, deviation),
            self._store(f"{name}.bias", shape[:1], gain * _BIAS),
        ]

    def _store(self, name: str, shape: tuple[int, ...], deviation: float) -> str:
        values: npt.NDArray[np.float32] = self._random.standard_normal(
            shape, np.float32
        ) * np.float32(deviation)
        self._weights.append(numpy_helper.from_array(values, name))
        return name
