"""Quantizers: the number format of a Q/DQ pair, and the named ones that rules refer to."""

from __future__ import annotations

import msgspec

#: INT8 is used symmetrically: [-127, 127] maps to [-amax, amax], so that negation is exact.
#: TensorRT clips to [-128, 127] (quantized types, schemes), which this range lies within.
INT8_LEVELS = 127


class Quantizer(msgspec.Struct, frozen=True, order=True):
    """How the values on an edge become integers: symmetric, zero point 0."""

    #: The word that a rule's ``using`` says.
    name: str
    #: ONNX element type of the quantized values.
    dtype: str
    #: Dimension that holds one scale each, or None for one scale for the whole tensor.
    axis: int | None = None

    def __str__(self) -> str:
        return self.name if self.axis is None else f"{self.name}(axis={self.axis})"


class Format(msgspec.Struct, frozen=True):
    """A named format: what ``using`` may say before the operator decides the axis."""

    dtype: str
    per_channel: bool
    says: str


FORMATS: dict[str, Format] = {
    "int8-activation": Format("int8", False, "INT8, one calibrated scale for the tensor"),
    "int8-weight-per-channel": Format("int8", True, "INT8, one scale per output channel of a constant"),
    "int8-weight-per-tensor": Format("int8", False, "INT8, one scale for the whole constant"),
}
