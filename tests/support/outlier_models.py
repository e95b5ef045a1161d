"""A network of which one small layer makes most of the error of INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.support.graphs import Array, build, node

#: The planted layer, and its share of the multiply-accumulates.
BAD = "bad"
SIDE, WIDTH, NARROW = 8, 16, 2


def outlier_model() -> onnx.ModelProto:
    """Return five Conv, of which `bad` reads a channel that is 300 times as large as the others.

    `x` is [1,3,8,8] and `y` is [1,4,8,8]. Its weight for that channel is as much smaller.
    """
    rng = np.random.default_rng(0)

    def weight(outputs: int, inputs: int, kernel: int = 1) -> Array:
        values = rng.standard_normal((outputs, inputs, kernel, kernel))
        scaled: Array = (values / np.sqrt(inputs * kernel**2)).astype(np.float32)
        return scaled

    weights = {
        "w0": weight(WIDTH, 3, 3),
        "w1": weight(WIDTH, WIDTH, 3),
        "w2": weight(NARROW, WIDTH),
        "w3": weight(WIDTH, NARROW),
        "w4": weight(4, WIDTH, 3),
    }
    weights["w2"][0] *= 300
    weights["w3"][:, 0] /= 300
    pads = [1, 1, 1, 1]
    nodes = [
        node("Conv", ["x", "w0"], "a0", "stem", pads=pads),
        node("LeakyRelu", ["a0"], "r0", alpha=0.1),
        node("Conv", ["r0", "w1"], "a1", "body", pads=pads),
        node("LeakyRelu", ["a1"], "r1", alpha=0.1),
        node("Conv", ["r1", "w2"], "a2", "narrow"),
        node("Conv", ["a2", "w3"], "a3", BAD),
        node("LeakyRelu", ["a3"], "r3", alpha=0.1),
        node("Conv", ["r3", "w4"], "y", "head", pads=pads),
    ]
    return build(nodes, {"x": [1, 3, SIDE, SIDE]}, ["y"], weights)


def outlier_samples(count: int = 6) -> Array:
    """Return samples of the model."""
    values = np.random.default_rng(1).standard_normal((count, 3, SIDE, SIDE))
    return values.astype(np.float32)


def write_outlier_inputs(folder: Path) -> tuple[Path, Path]:
    """Write the model and its samples, and return their paths."""
    model, data = folder / "m.onnx", folder / "d.npy"
    onnx.save(outlier_model(), model)
    np.save(data, outlier_samples())
    return model, data
