"""Quantizers: the number formats of Q/DQ pairs, and the named ones that rules refer to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

#: INT8 is used symmetrically: [-127, 127] maps to [-amax, amax], so that negation is exact.
#: This range is within TensorRT's [-128, 127] (quantized types, schemes).
INT8_LEVELS = 127

#: INT4 too: TensorRT's range is [-8, 7].
INT4_LEVELS = 7

#: FP8 E4M3: 4 bits of exponent, 3 of mantissa, no infinity
#: (Micikevicius et al. 2022, arXiv:2209.05433).
E4M3_LARGEST = 448
E4M3_MANTISSA = 3
E4M3_LEAST_EXPONENT = -6
E4M3_LARGEST_EXPONENT = 8

INT8 = "int8"
INT4 = "int4"
E4M3 = "float8e4m3fn"


class ElementType(msgspec.Struct, frozen=True):
    """A type of quantized values with zero point 0."""

    #: ONNX's name in lower case.
    name: str
    #: The name in texts.
    label: str
    #: Value of `onnx.TensorProto.DataType`.
    code: int
    #: The value that the amax of a tensor maps to.
    largest: int
    #: The first opset whose Q/DQ supports it, `axis` included (ONNX operator changelog).
    opset: int
    #: The largest useful ratio of a range to the largest observed value. The grid of a
    #: floating-point type is the same at twice the scale, apart from its ends, so one octave
    #: contains every alignment with the values. An even grid only becomes coarser.
    headroom: float = 1.0
    #: The size of a stored value.
    bits: int = 8

    @property
    def is_integer(self) -> bool:
        """Whether the values are evenly spaced."""
        return self.name != E4M3

    def zero_bytes(self, count: int) -> bytes:
        """Return the bytes of so many stored zeros."""
        return bytes(math.ceil(count * self.bits / 8))

    def round(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the nearest values of this type to float values in units of the scale.

        Ties round to even, and values are clipped to the largest.
        """
        return self.round_into(values, np.empty_like(values))

    def round_into(
        self, values: npt.NDArray[Any], out: npt.NDArray[Any], clip: bool = True
    ) -> npt.NDArray[Any]:
        """Round as `round` does, and return `out`, which has the results and may be `values`.

        `clip` may be False for values that exceed the largest by less than half a step.
        """
        if self.is_integer:
            np.rint(values, out=out)
        else:
            step = _e4m3_step(values)
            np.divide(values, step, out=out)
            np.rint(out, out=out)
            out *= step
        if clip:
            np.clip(out, -self.largest, self.largest, out=out)
        return out

    def error(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the largest rounding error of values of these magnitudes, without clipping.

        All are in units of the scale.
        """
        if self.is_integer:
            return np.full_like(values, 0.5)
        return _e4m3_step(values) / 2

    def grid(self) -> npt.NDArray[np.float64]:
        """Return every value of this type from 0 to the largest, ascending."""
        return _grid(self.name)

    def bounds(self) -> npt.NDArray[np.float64]:
        """Return the bounds of the intervals around the values from 0 on, as fractions of amax.

        They ascend from 0 to 1. INT8's 127 steps and zero have 128 equal intervals, as in
        pytorch-quantization's entropy calibrator, and INT4's 7 steps have 8. The intervals of
        a floating-point type meet halfway between its values.
        """
        if self.is_integer:
            return np.arange(self.largest + 2) / (self.largest + 1)
        grid = self.grid() / self.largest
        middles = (grid[1:] + grid[:-1]) / 2
        return np.concatenate([[0.0], middles, [1.0]])


def _e4m3_step(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the distance of neighbouring E4M3 values around each value.

    It is 2**-3 of the value's power of two, and 2**-9 near zero.
    """
    _, exponent = np.frexp(values)  # magnitude in [2**(exponent - 1), 2**exponent)
    step_exponent = np.maximum(exponent - 1, E4M3_LEAST_EXPONENT) - E4M3_MANTISSA
    step: npt.NDArray[Any] = np.ldexp(np.ones((), values.dtype), step_exponent)
    return step


@cache
def _grid(name: str) -> npt.NDArray[np.float64]:
    element = ELEMENT_TYPES[name]
    if element.is_integer:
        return np.arange(element.largest + 1, dtype=np.float64)
    fractions = np.arange(1 << E4M3_MANTISSA) / (1 << E4M3_MANTISSA)
    parts = [fractions * 2.0**E4M3_LEAST_EXPONENT]
    for exponent in range(E4M3_LEAST_EXPONENT, E4M3_LARGEST_EXPONENT + 1):
        parts.append((1 + fractions) * 2.0**exponent)
    grid = np.concatenate(parts)
    return grid[grid <= E4M3_LARGEST]


ELEMENT_TYPES: dict[str, ElementType] = {
    INT8: ElementType(INT8, "INT8", 3, INT8_LEVELS, 13),
    INT4: ElementType(INT4, "INT4", 22, INT4_LEVELS, 21, bits=4),
    E4M3: ElementType(E4M3, "FP8", 17, E4M3_LARGEST, 19, headroom=2.0),
}

#: The least and the largest value of ONNX's integer types for quantized values, by
#: `onnx.TensorProto.DataType`.
_INTEGER_LEVELS = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    21: (0, 15),
    22: (-8, 7),
}

#: Integer types of 16 and of 4 bits.
_OPSET_21_TYPES = (4, 5, 21, 22)


def required_opset(code: int) -> int:
    """Return the first opset whose Q/DQ supports a type of 16 or 4 bits (ONNX operator changelog).

    The result is 0 for any other type.
    """
    return 21 if code in _OPSET_21_TYPES else 0


def integer_levels(code: int) -> tuple[int, int] | None:
    """Return the least and the largest value of an integer type for quantized values.

    None for every other type.
    """
    return _INTEGER_LEVELS.get(code)


class Quantizer(msgspec.Struct, frozen=True, order=True):
    """The conversion of an edge's values to integers or 8-bit floats, with zero point 0."""

    #: The value of a rule's ``using``.
    name: str
    #: ONNX element type of the quantized values.
    dtype: str
    #: The dimension with one scale per index, or per block of indices; None for one scale for the
    #: whole tensor.
    axis: int | None = None

    def __str__(self) -> str:
        return self.name if self.axis is None else f"{self.name}(axis={self.axis})"

    @property
    def element(self) -> ElementType:
        """The type of the quantized values."""
        return ELEMENT_TYPES[self.dtype]

    @property
    def calibrated(self) -> bool:
        """Whether the range is observed on data rather than read from a constant."""
        return not FORMATS[self.name].constant

    @property
    def block_size(self) -> int:
        """The values along the axis that share a scale; 0 where all of an index do."""
        return FORMATS[self.name].block_size

    @property
    def is_weight_only(self) -> bool:
        """Whether the layer's other operand stays in float."""
        return self.block_size > 0

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the Q and of the DQ, which are integers."""
        attributes: dict[str, Any] = {}
        if self.axis is not None:
            attributes["axis"] = self.axis
        if self.block_size:
            attributes["block_size"] = self.block_size
        return attributes

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scales of a tensor of a shape."""
        if self.axis is None:
            return ()
        if not self.block_size:
            return (shape[self.axis],)
        blocks = list(shape)
        blocks[self.axis] = math.ceil(shape[self.axis] / self.block_size)
        return tuple(blocks)


class QuantizerFormat(msgspec.Struct, frozen=True):
    """A named format: a value of ``using`` before the operator specifies the axis."""

    dtype: str
    per_channel: bool
    #: Whether it is for constants only.
    constant: bool
    description: str
    #: The values of a row that share a scale, 0 without blocks.
    block_size: int = 0


FORMATS: dict[str, QuantizerFormat] = {
    "int8-activation": QuantizerFormat(
        INT8, False, False, "INT8, one calibrated scale for the tensor"
    ),
    "int8-weight-per-channel": QuantizerFormat(
        INT8, True, True, "INT8, one scale per output channel of a constant"
    ),
    "int8-weight-per-tensor": QuantizerFormat(
        INT8, False, True, "INT8, one scale for the whole constant"
    ),
    "fp8-activation": QuantizerFormat(
        E4M3, False, False, "FP8 E4M3, one calibrated scale for the tensor"
    ),
    "fp8-weight-per-channel": QuantizerFormat(
        E4M3, True, True, "FP8 E4M3, one scale per output channel of a constant"
    ),
    "int4-weight-block-16": QuantizerFormat(
        INT4,
        False,
        True,
        "INT4, one scale per 16 values that the product sums over; the other operand stays float",
        16,
    ),
    "int4-weight-block-32": QuantizerFormat(
        INT4,
        False,
        True,
        "INT4, one scale per 32 values that the product sums over; the other operand stays float",
        32,
    ),
    "int4-weight-block-64": QuantizerFormat(
        INT4,
        False,
        True,
        "INT4, one scale per 64 values that the product sums over; the other operand stays float",
        64,
    ),
    "int4-weight-block-128": QuantizerFormat(
        INT4,
        False,
        True,
        "INT4, one scale per 128 values that the product sums over; the other operand stays float",
        128,
    ),
    "fp8-weight-per-tensor": QuantizerFormat(
        E4M3, False, True, "FP8 E4M3, one scale for the whole constant"
    ),
}
