"""Quantizers: the number format of a Q/DQ pair, and the named ones that rules refer to."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

#: INT8 is used symmetrically: [-127, 127] maps to [-amax, amax], so that negation is exact.
#: TensorRT clips to [-128, 127] (quantized types, schemes), which this range lies within.
INT8_LEVELS = 127

#: FP8 E4M3: 4 bits of exponent, 3 of mantissa, no infinity (Micikevicius et al. 2022, arXiv:2209.05433).
E4M3_LARGEST, E4M3_MANTISSA, E4M3_LEAST_EXPONENT = 448, 3, -6
INT8, E4M3 = "int8", "float8e4m3fn"


class ElementType(msgspec.Struct, frozen=True):
    """A type that values are quantized to, zero point 0."""

    #: As ONNX spells it, in lower case.
    name: str
    #: As people spell it.
    label: str
    #: Value of `onnx.TensorProto.DataType`.
    code: int
    #: The value that the amax of a tensor maps to.
    largest: int
    #: The first opset whose Q/DQ takes it, `axis` included (ONNX operator changelog).
    opset: int
    #: How far beyond the largest value seen a range may reach. The grid of a floating-point type is the same at twice the scale,
    #: apart from its ends, so one octave holds every way to lay it over the values; an even grid only gets coarser.
    headroom: float = 1.0

    def round(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the nearest values of this type to float values in units of the scale, ties to even, clipped to the largest."""
        return self.round_in_place(np.array(values))

    def round_in_place(self, values: npt.NDArray[Any], clip: bool = True) -> npt.NDArray[Any]:
        """Round as `round` does, in place; `clip` False is for values that do not exceed the largest by half a step."""
        if self.name == INT8:
            np.rint(values, out=values)
        else:
            step = _e4m3_step(values)
            values /= step
            np.rint(values, out=values)
            values *= step
        return np.clip(values, -self.largest, self.largest, out=values) if clip else values

    def error(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the most that rounding may move values of these magnitudes, all in units of the scale; clipping is not in it."""
        return np.full_like(values, 0.5) if self.name == INT8 else _e4m3_step(values) / 2

    def grid(self) -> npt.NDArray[np.float64]:
        """Return every value of this type from 0 to the largest, ascending."""
        return _grid(self.name)

    def bounds(self) -> npt.NDArray[np.float64]:
        """Return where the values of this type from 0 on part [0, 1] among them, ascending, as fractions of amax.

        INT8's 127 steps and zero take 128 equal parts, as in pytorch-quantization's entropy calibrator; the parts of a
        floating-point type meet halfway between its values.
        """
        if self.name == INT8:
            return np.arange(INT8_LEVELS + 2) / (INT8_LEVELS + 1)
        grid = self.grid() / self.largest
        return np.concatenate([[0.0], (grid[1:] + grid[:-1]) / 2, [1.0]])


def _e4m3_step(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the distance of neighbouring E4M3 values around each value: 2**-3 of its power of two, 2**-9 near zero."""
    _, exponent = np.frexp(values)  # magnitude in [2**(exponent - 1), 2**exponent)
    step: npt.NDArray[Any] = np.ldexp(
        np.ones((), values.dtype), np.maximum(exponent - 1, E4M3_LEAST_EXPONENT) - E4M3_MANTISSA
    )
    return step


@cache
def _grid(name: str) -> npt.NDArray[np.float64]:
    if name == INT8:
        return np.arange(INT8_LEVELS + 1, dtype=np.float64)
    fractions = np.arange(1 << E4M3_MANTISSA) / (1 << E4M3_MANTISSA)
    normal = [(1 + fractions) * 2.0**exponent for exponent in range(E4M3_LEAST_EXPONENT, 9)]
    grid = np.concatenate([fractions * 2.0**E4M3_LEAST_EXPONENT, *normal])
    return grid[grid <= E4M3_LARGEST]


ELEMENT_TYPES: dict[str, ElementType] = {
    INT8: ElementType(INT8, "INT8", 3, INT8_LEVELS, 13),
    E4M3: ElementType(E4M3, "FP8", 17, E4M3_LARGEST, 19, headroom=2.0),
}

#: ONNX's integer types that values are quantized to: the least and the largest value of each, by `onnx.TensorProto.DataType`.
_INTEGERS = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    21: (0, 15),
    22: (-8, 7),
}


def required_opset(code: int) -> int:
    """Return the first opset whose Q/DQ takes a type of 16 bits or 4; 0 for another (ONNX operator changelog)."""
    return 21 if code in (4, 5, 21, 22) else 0


def integer_levels(code: int) -> tuple[int, int] | None:
    """Return the least and the largest value of an integer type that values are quantized to; None for every other type."""
    return _INTEGERS.get(code)


class Quantizer(msgspec.Struct, frozen=True, order=True):
    """How the values on an edge become integers or 8-bit floats: symmetric, zero point 0."""

    #: The word that a rule's ``using`` says.
    name: str
    #: ONNX element type of the quantized values.
    dtype: str
    #: Dimension that holds one scale each, or None for one scale for the whole tensor.
    axis: int | None = None

    def __str__(self) -> str:
        return self.name if self.axis is None else f"{self.name}(axis={self.axis})"

    @property
    def element(self) -> ElementType:
        """The type that values are quantized to."""
        return ELEMENT_TYPES[self.dtype]

    @property
    def calibrated(self) -> bool:
        """Whether the range is observed on data, and not taken from a constant alone."""
        return not FORMATS[self.name].constant


class QuantizerFormat(msgspec.Struct, frozen=True):
    """A named format: what ``using`` may say before the operator decides the axis."""

    dtype: str
    per_channel: bool
    #: Whether it takes constants only.
    constant: bool
    description: str


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
    "fp8-weight-per-tensor": QuantizerFormat(
        E4M3, False, True, "FP8 E4M3, one scale for the whole constant"
    ),
}
