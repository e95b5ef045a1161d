"""Folders of pictures, and models that take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image


def picture_model(
    *shape: int | str, dtype: int = TensorProto.FLOAT, more: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """Return a model of one convolution over `images`, channels behind the batch or last, and further inputs that it ignores."""
    last = shape[1] not in (1, 3)
    channels = shape[3] if last else shape[1]
    weight = (
        np.random.default_rng(0)
        .standard_normal((4, channels if isinstance(channels, int) else 3, 3, 3))
        .astype(np.float32)
    )
    nodes = (
        [helper.make_node("Transpose", ["images"], ["t"], perm=[0, 3, 1, 2])]
        if last
        else [helper.make_node("Identity", ["images"], ["t"])]
    )
    nodes.append(helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Conv", ["f", "w"], ["y"], name="conv"))
    inputs = [
        helper.make_tensor_value_info("images", dtype, shape),
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in more),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])]
    graph = helper.make_graph(
        nodes, "pictures", inputs, outputs, [numpy_helper.from_array(weight, "w")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a picture of smooth colours with some texture, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (9 + 4 * c) + columns / (13 - 3 * c)) for c in range(3)]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def album(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Write one picture of each height and width as PNG and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(sizes):
        Image.fromarray(scene(*size, seed=i)).save(folder / f"{i}.png")
    return folder
