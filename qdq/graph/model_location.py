"""The name of a model and the folder of its external data: what reading a stored tensor needs."""

from __future__ import annotations

from pathlib import Path

import msgspec
from onnx import TensorProto

from qdq.arrays import Array
from qdq.graph.bodies import read_tensor_values


class ModelLocation(msgspec.Struct, frozen=True):
    """The name of a model, for messages, and the folder of its external data."""

    name: str = "model"
    folder: Path | None = None

    def read_values(self, tensor: TensorProto) -> Array:
        """Return the values of a tensor of the model; raises ModelError where it cannot be read."""
        return read_tensor_values(tensor, self.name, self.folder)
