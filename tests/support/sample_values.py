"""Samples for models of one and of two inputs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.cli_runner import SHAPE, tiny_model


def values(n: int = 1) -> np.ndarray:
    """Return `n` seeded samples for `tiny_model`."""
    return np.random.default_rng(0).standard_normal((n, *SHAPE)).astype(np.float32)


def with_two_inputs() -> onnx.ModelProto:
    """Return the tiny model with a second input `bias` that is added to its output."""
    model = tiny_model()
    model.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["batch", 5]))
    model.graph.node.append(helper.make_node("Add", ["y", "bias"], ["z"], name="add"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 5]))
    return model
