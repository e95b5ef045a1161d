"""The float type around the pairs of `quantize`: what was requested, and what targets imply."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qdq.arguments import require_type
from qdq.graph.float_types import FloatType, parse_float_type
from qdq.planning.plan_request import choose_float_type
from qdq.precision.cast_model import ENDS, SCALES, require_choice
from qdq.target import Target


class FloatOptions(msgspec.Struct, frozen=True):
    """The float type of what gets no pair, and the types of scales, inputs and outputs."""

    #: fp32, fp16 or bf16; None where the targets decide.
    float_type: str | None = None
    #: The scales of pairs: `float` for the type of the layers, or `fp32` with Casts around.
    scales: str = "float"
    #: The model's inputs and outputs: `keep`, or `fp16` to cast them too.
    io: str = "keep"

    def __post_init__(self) -> None:
        if self.float_type is not None:
            parse_float_type(self.float_type, "float_type")
        require_choice(self.scales, SCALES, "scales")
        require_choice(self.io, ENDS, "io")

    @property
    def keeps_scales(self) -> bool:
        """Whether pairs keep scales in float32."""
        return self.scales == "fp32"

    @property
    def casts_ends(self) -> bool:
        """Whether the model's inputs and outputs are cast too."""
        return self.io == "fp16"

    def choose(self, targets: Iterable[Target]) -> FloatType:
        """Return the type of the float part: FP16 where a target builds no Gemm in FP32."""
        return choose_float_type(self.float_type, targets)


def to_float_options(float_type: str | FloatOptions | None) -> FloatOptions:
    """Return the options of what users pass; raises UsageError for unknown names."""
    if isinstance(float_type, FloatOptions):
        return float_type
    require_type(float_type, (str, type(None)), "float_type", "'fp16' or qdq.FloatOptions(...)")
    return FloatOptions(float_type)
