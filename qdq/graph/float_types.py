"""The float types that the float part of a model can have, and values rounded to them."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from qdq.arrays import Array
from qdq.errors import UsageError, did_you_mean

#: The bits of a float32 that bfloat16 drops.
_DROPPED_BITS = 16


class FloatType(msgspec.Struct, frozen=True):
    """A float type: its limits, and what ONNX calls it."""

    #: The name in options: ``fp16``.
    name: str
    #: ONNX's name in lower case, which is also the suffix of the names of cast tensors.
    onnx_name: str
    #: Value of `onnx.TensorProto.DataType`.
    code: int
    #: The largest value.
    largest: float
    #: The smallest value above 0 that has the full precision.
    least_normal: float
    #: The smallest value above 0.
    least: float
    #: The first opset in which the weighted operators support it (ONNX operator changelog).
    opset: int

    @property
    def label(self) -> str:
        """The name in texts: ``FP16``."""
        return self.name.upper()

    @property
    def is_short(self) -> bool:
        """Whether it has 16 bits."""
        return self.code != TensorProto.FLOAT


FP32 = FloatType(
    "fp32",
    "float32",
    TensorProto.FLOAT,
    largest=float(np.finfo(np.float32).max),
    least_normal=float(np.finfo(np.float32).tiny),
    least=2.0**-149,
    opset=1,
)
#: IEEE 754 binary16: 5 bits of exponent, 10 of mantissa.
FP16 = FloatType(
    "fp16",
    "float16",
    TensorProto.FLOAT16,
    largest=65504.0,
    least_normal=2.0**-14,
    least=2.0**-24,
    opset=1,
)
#: The upper half of a float32: 8 bits of exponent, 7 of mantissa. Conv has it since opset 22.
BF16 = FloatType(
    "bf16",
    "bfloat16",
    TensorProto.BFLOAT16,
    largest=float(np.array(0x7F7F0000, np.uint32).view(np.float32)),
    least_normal=2.0**-126,
    least=2.0**-133,
    opset=22,
)

FLOAT_TYPES = {"fp32": FP32, "fp16": FP16, "bf16": BF16}

#: The types with 16 bits, which a float model can be cast to.
SHORT_TYPES = {"fp16": FP16, "bf16": BF16}


def parse_float_type(text: str, option: str = "to") -> FloatType:
    """Return the float type of a name; raises UsageError, which names the option, for others."""
    float_type = FLOAT_TYPES.get(text) if isinstance(text, str) else None
    if float_type is None:
        hint = did_you_mean(str(text), FLOAT_TYPES) or "."
        names = ", ".join(FLOAT_TYPES)
        raise UsageError(f"{option}: {text!r} is no float type{hint} Pass one of {names}.")
    return float_type


def round_to_type(values: Array, float_type: FloatType) -> Array:
    """Return values rounded to a float type, as float32; finite ones stay finite.

    Values beyond the largest become the largest. Ties round to even (IEEE 754).
    """
    floats = np.asarray(values, np.float32)
    limit = np.float32(float_type.largest)
    clipped = np.where(np.isfinite(floats), np.clip(floats, -limit, limit), floats)
    if float_type.code == TensorProto.FLOAT16:
        return clipped.astype(np.float16).astype(np.float32)
    if float_type.code == TensorProto.BFLOAT16:
        return _widen(_round_to_bfloat16(clipped))
    return clipped


def encode_floats(values: Array, float_type: FloatType) -> bytes:
    """Return the raw data of values that `round_to_type` rounded, as a TensorProto stores them."""
    if float_type.code == TensorProto.FLOAT16:
        return values.astype("<f2").tobytes()
    if float_type.code == TensorProto.BFLOAT16:
        return _round_to_bfloat16(values).astype("<u2").tobytes()
    return values.astype("<f4").tobytes()


def _round_to_bfloat16(values: Array) -> npt.NDArray[np.uint16]:
    """Return the upper halves of float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    is_odd = (bits >> _DROPPED_BITS) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + is_odd) >> _DROPPED_BITS
    is_special = ~np.isfinite(values)
    return np.where(is_special, bits >> _DROPPED_BITS, rounded).astype(np.uint16)


def _widen(halves: npt.NDArray[np.uint16]) -> Array:
    bits = halves.astype(np.uint32) << _DROPPED_BITS
    widened: Array = bits.view(np.float32)
    return widened
