"""Weights that a session reads from memory, so that they are not serialised with the model.

ONNX Runtime calls them external initializers: the model declares them as data of a file, and the
session's options have their values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, helper

from qdq.graph.source import copy_with_initializers
from qdq.graph.tensor_sizes import count_value_bytes
from qdq.optional_packages import onnxruntime as ort

#: The least bytes of a weight that is not serialised.
_LEAST_BYTES = 1 << 16

#: The types whose raw data numpy reads as it is.
_PLAIN_TYPES = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8))

#: The file that a declaration names; nothing reads it.
_LOCATION = "memory"


def declare_weight(name: str, elem_type: int, shape: Sequence[int]) -> TensorProto:
    """Return a tensor whose values are in memory: external data, as onnx.proto has it."""
    size = math.prod(shape) * helper.tensor_dtype_to_np_dtype(elem_type).itemsize
    tensor = TensorProto(
        name=name, data_type=elem_type, dims=shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", _LOCATION), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def take_out_weights(model: ModelProto) -> tuple[ModelProto, dict[str, ort.OrtValue]]:
    """Return a copy of a model that declares its large weights, and their values by name.

    The values must live as long as a session that reads them.
    """
    values: dict[str, ort.OrtValue] = {}

    def take_out(tensor: TensorProto) -> TensorProto:
        if not _is_large(tensor):
            return tensor
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = math.prod(tensor.dims)
        array = np.frombuffer(tensor.raw_data, dtype, count).reshape(tuple(tensor.dims))
        values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(array)
        return declare_weight(tensor.name, tensor.data_type, tensor.dims)

    return copy_with_initializers(model, take_out), values


def _is_large(tensor: TensorProto) -> bool:
    has_plain_data = tensor.data_type in _PLAIN_TYPES and tensor.HasField("raw_data")
    return has_plain_data and count_value_bytes(tensor) >= _LEAST_BYTES
