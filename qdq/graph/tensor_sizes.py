"""The memory that the values of a stored tensor need, read from its type and dimensions alone.

`ByteSize` of a message serialises it, and `raw_data` copies the values.
"""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto


def count_value_bytes(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's values in memory; a type of 4 bits takes a byte a value."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    size: int = math.prod(tensor.dims) * dtype.itemsize
    return size
