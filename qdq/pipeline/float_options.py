"""The float type around the pairs of `quantize`: what was requested, and what targets imply."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qdq.graph.float_types import FP16, FP32, FloatType, parse_float_type
from qdq.precision.cast_model import ENDS, SCALES, require_choice
from qdq.target import Target

#: The compute capability of TensorRT-RTX that builds no Gemm in FP32.
_FP16_ONLY_CAPABILITY = 75


class FloatOptions(msgspec.Struct, frozen=True):
    """The float type that was requested, and the types of scales and ends."""

    #: None where the targets decide.
    float_type: FloatType | None = None
    keeps_scales: bool = False
    casts_ends: bool = False

    def choose(self, targets: Iterable[Target]) -> FloatType:
        """Return the type of the float part: FP16 where a target builds no Gemm in FP32."""
        if self.float_type is not None:
            return self.float_type
        return FP16 if any(map(_needs_fp16, targets)) else FP32


def to_float_options(float_type: str | None, scales: str, io: str) -> FloatOptions:
    """Return the options of what users pass; raises UsageError for unknown names."""
    return FloatOptions(
        None if float_type is None else parse_float_type(float_type, "float"),
        require_choice(scales, SCALES, "scales") == "fp32",
        require_choice(io, ENDS, "io") == "fp16",
    )


def _needs_fp16(target: Target) -> bool:
    return target.backend == "rtx" and target.sm == _FP16_ONLY_CAPABILITY
