"""Quantized values as QuantizeLinear computes them, and as a file stores them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from qdq.arrays import Array
from qdq.quantizer import E4M3, ELEMENT_TYPES, integer_levels

_NIBBLE = 0x0F
_NIBBLE_BITS = 4
_NIBBLE_SIGN = np.int8(0x08)

#: The bit of a negative E4M3 value.
_E4M3_SIGN = 0x80


def quantize_values(
    values: Array, scale: Array, code: int, axis: int = 0, block_size: int = 0
) -> Array:
    """Return the quantized values of a float tensor (ONNX operator QuantizeLinear, zero point 0).

    Values are divided by their scale in float32, rounded half to even, and clipped to the type
    `code`, as ONNX Runtime does. `scale` has one value, one per index of `axis`, or with a
    `block_size` one per block along it. INT8 and INT4 are returned as int8, FP8 E4M3 as its bits
    in uint8.
    """
    scale = spread_scale(scale, values.shape, axis, block_size)
    with np.errstate(over="ignore"):
        steps = values.astype(np.float32) / scale.astype(np.float32)
    levels = integer_levels(code)
    if levels is None:
        return _encode_e4m3(steps)
    rounded = np.clip(np.rint(steps), *levels)
    return rounded.astype(np.int8)


def _encode_e4m3(steps: Array) -> npt.NDArray[np.uint8]:
    """Return the bits of the nearest E4M3 values: those of magnitudes count up from 0."""
    element = ELEMENT_TYPES[E4M3]
    rounded = element.round(np.clip(steps, -element.largest, element.largest))
    magnitudes = np.searchsorted(element.grid(), np.abs(rounded))
    signs = np.where(np.signbit(steps), _E4M3_SIGN, 0)
    bits: npt.NDArray[np.uint8] = (magnitudes | signs).astype(np.uint8)
    return bits


def spread_scale(scale: Array, shape: Sequence[int], axis: int, block_size: int = 0) -> Array:
    """Return a scale in a form that broadcasts with a tensor of a shape.

    Raises ValueError or IndexError where it does not fit.
    """
    if block_size:
        blocks = np.arange(shape[axis]) // block_size
        return scale.take(blocks, axis=axis)
    if scale.size == 1:
        return scale.reshape(())
    channels = [1] * len(shape)
    channels[axis] = scale.size
    return scale.reshape(channels)


def make_quantized_tensor(values: Array, code: int, name: str) -> TensorProto:
    """Return the tensor that a file stores the result of `quantize_values` in."""
    content = pack_nibbles(values) if code == TensorProto.INT4 else values.tobytes()
    return TensorProto(name=name, data_type=code, dims=values.shape, raw_data=content)


def pack_nibbles(values: Array) -> bytes:
    """Return integers of 4 bits, two a byte, the first in the lower half (ONNX, TensorProto.INT4).

    The last half of a byte is 0 where their number is odd.
    """
    flat = values.astype(np.int8).reshape(-1).view(np.uint8) & _NIBBLE
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    high_halves = np.left_shift(flat[1::2], _NIBBLE_BITS, dtype=np.uint8)
    packed: npt.NDArray[np.uint8] = np.bitwise_or(flat[0::2], high_halves)
    return packed.tobytes()


def unpack_nibbles(content: bytes, shape: Sequence[int]) -> npt.NDArray[np.int8]:
    """Return the signed integers that `pack_nibbles` wrote."""
    packed = np.frombuffer(content, np.uint8)
    halves = np.stack([packed & _NIBBLE, packed >> _NIBBLE_BITS], axis=-1)
    integers: npt.NDArray[np.int8] = halves.reshape(-1)[: math.prod(shape)].view(np.int8)
    integers ^= _NIBBLE_SIGN
    integers -= _NIBBLE_SIGN
    return integers.reshape(shape)
