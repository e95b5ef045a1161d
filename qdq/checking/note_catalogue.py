"""Problems that are only suspicious."""

from __future__ import annotations

from qdq.checking.problem import (
    BUILT_ENGINE,
    EXPLICIT,
    NOTE,
    PRECISION_PAGE,
    REPAIR_FIX,
    RTX,
    SPECIFICATION,
    Problem,
)

_SCALE_FROM_WEIGHTS = "choose the scale from the weights: their largest value over 127"
_NO_INT8_LAYER = "It creates no INT8 layer."

NOTE_PROBLEMS = (
    Problem(
        code="engine-kernel",
        severity=NOTE,
        title="A pair that is a separate kernel in the engine",
        cost="One more kernel reads and writes the whole tensor.",
        fix="inspect the operators on both sides of the pair with qdq explain",
        evidence=BUILT_ENGINE,
    ),
    Problem(
        code="not-quantized",
        severity=NOTE,
        title="A model without any quantization",
        cost="The model runs in float.",
        fix="quantize it with qdq quantize, or exclude it from the models that are checked",
        evidence="no quantized operator in the file",
    ),
    Problem(
        code="weight-per-tensor",
        severity=NOTE,
        title="Weights with one scale where one per channel is possible",
        cost=(
            "Accuracy suffers: the narrow channels of a weight share the steps of the widest. The "
            "layers run in INT8."
        ),
        fix=f"scale weights along their output channels, or {REPAIR_FIX}",
        evidence=f"{RTX}: a Conv weight of one scale runs in INT8",
        see=EXPLICIT,
    ),
    Problem(
        code="tiny-scale",
        severity=NOTE,
        title="A scale that is denormal",
        cost=(
            "A GPU that flushes denormal numbers divides by zero. The tensor held only zeros, or "
            "calibration went wrong."
        ),
        fix="calibrate again",
        evidence=f"{RTX}: builds",
    ),
    Problem(
        code="saturated-weights",
        severity=NOTE,
        title="Many weights at the ends of the range",
        cost="These weights were clipped: the scale is too small for them.",
        fix=_SCALE_FROM_WEIGHTS,
        evidence=(
            "more than 1 in 20 weights are at the ends, not counting the largest of each channel"
        ),
    ),
    Problem(
        code="weight-scale",
        severity=NOTE,
        title="A weight scale far from the weights' own maximum",
        cost="A scale that is too large wastes levels; one that is too small clips.",
        fix=_SCALE_FROM_WEIGHTS,
        evidence=(
            "127 steps are over 4 times the largest weight of a channel, or under a quarter of it"
        ),
    ),
    Problem(
        code="lone-quantize",
        severity=NOTE,
        title="A QuantizeLinear that no DequantizeLinear reads",
        cost=_NO_INT8_LAYER,
        fix="remove it, or complete the pair; an INT8 graph output is fine and is not reported",
        evidence=f"{RTX}: an INT8 graph output builds",
    ),
    Problem(
        code="lone-dequantize",
        severity=NOTE,
        title="A DequantizeLinear that reads no QuantizeLinear",
        cost=_NO_INT8_LAYER,
        fix="remove it, or complete the pair; an INT8 graph input is fine and is not reported",
        evidence=f"{RTX}: an INT8 graph input builds",
    ),
    Problem(
        code="duplicate-pair",
        severity=NOTE,
        title="A pair directly after another",
        cost="With the same scale it does nothing; with another it rounds twice.",
        fix="remove one of the two pairs",
        evidence=f"{RTX}: builds, the layer in INT8",
    ),
    Problem(
        code="unequal-halves",
        severity=NOTE,
        title="A QuantizeLinear of another scale than its DequantizeLinear",
        cost="The tensor is multiplied by the ratio of the two scales, which is hardly intended.",
        fix="give the Q and the DQ the same scale",
        evidence=f"{RTX}: builds, the layer in INT8; TensorRT does not check the scales",
        see=SPECIFICATION,
    ),
    Problem(
        code="cancelling-casts",
        severity=NOTE,
        title="A Cast to a wider float type and back",
        cost="The Casts change no value. Compilers that do not remove them run two kernels.",
        fix="cast it with qdq cast MODEL -o OUTPUT --to fp16, which removes them",
        evidence=f"{RTX}: removed when the engine is built; from FP32 to FP16 and back rounds",
    ),
    Problem(
        code="scale-float-type",
        severity=NOTE,
        title="Scales in FP32 before a layer in FP16 or BF16",
        cost="The layer runs in INT8, and matrix products write FP32.",
        fix=(
            "cast it with qdq cast MODEL -o OUTPUT --to fp16; --scales fp32 keeps such scales for "
            "compilers that refuse others"
        ),
        evidence=(
            f"{RTX}: three MatMuls of 128x64x64 in FP16 move 324 kB with FP32 scales, 226 kB with "
            "FP16 scales; convolutions move the same"
        ),
        see="NVIDIA/TensorRT issue 4832",
    ),
    Problem(
        code="fp32-layers",
        severity=NOTE,
        title="Layers in FP32 for a target whose matrix products need FP16",
        cost="The layers read and write twice the bytes of FP16, and have no INT8 kernel either.",
        fix="cast it with qdq cast MODEL -o OUTPUT --to fp16, or quantize it for this target",
        evidence=(
            "built with TensorRT-RTX 1.7.1 for rtx:sm75: a 3x3 convolution of 32 channels at 28x28 "
            "moves 639 kB in FP32, 319 kB in FP16"
        ),
        see=PRECISION_PAGE,
    ),
)
