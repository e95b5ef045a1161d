"""Problems that TensorRT refuses, or reads differently than ONNX specifies."""

from __future__ import annotations

from qdq.checking.problem import (
    BUILT_ENGINE,
    ERROR,
    EXPLICIT,
    PARSER,
    PRECISION_PAGE,
    REPAIR_FIX,
    RTX,
    SPECIFICATION,
    Problem,
)

_REFUSED = "TensorRT's parser refuses the model."

ERROR_PROBLEMS = (
    Problem(
        code="zero-point",
        severity=ERROR,
        title="A zero point that is not 0",
        cost="TensorRT's parser refuses the model: it supports only symmetric quantization.",
        fix=f"quantize symmetrically, or {REPAIR_FIX}",
        evidence=f'{RTX}: "Non-zero zero point is not supported"',
        see=PARSER,
    ),
    Problem(
        code="scale-not-positive",
        severity=ERROR,
        title="A scale that is zero, negative or not a finite number",
        cost=_REFUSED,
        fix=(
            f"calibrate again, or {REPAIR_FIX}, which takes the scales of weights from their "
            "values; float16 holds no scale below 6e-8"
        ),
        evidence=f'{RTX}: "Scale coefficients must all be positive"',
        see=PARSER,
    ),
    Problem(
        code="scale-count",
        severity=ERROR,
        title="A number of scales or zero points that does not fit the tensor",
        cost=_REFUSED,
        fix="store one scale for each entry of the axis, and as many zero points",
        evidence=f'{RTX}: "The number of scales is not equal to the number of output channels"',
        see=PARSER,
    ),
    Problem(
        code="scale-not-constant",
        severity=ERROR,
        title="A scale that is computed while the model runs",
        cost=(
            "TensorRT needs the scale at build time. The parser of TensorRT-RTX 1.7.1 ends with a "
            "segmentation fault."
        ),
        fix="store the scale as an initializer",
        evidence=f"{RTX}: a scale that is a graph input ends the compiler with signal 11",
        see=PARSER,
    ),
    Problem(
        code="scale-type",
        severity=ERROR,
        title="A scale of another float type than its tensor",
        cost=(
            "From opset 19 on, the result of DequantizeLinear has the scale's type. The next layer "
            "then reads two float types, and the parser refuses it."
        ),
        fix="store the scale in the type of the tensor",
        evidence=(
            f'{RTX}: FP16 scale in an FP32 graph: "`input` and `kernel` must be of same type"'
        ),
        see=PARSER,
    ),
    Problem(
        code="int32-dequantize",
        severity=ERROR,
        title="DequantizeLinear of INT32, as ONNX Runtime writes quantized biases",
        cost=_REFUSED,
        fix=f"store the bias as floats (ONNX Runtime: QuantizeBias False), or {REPAIR_FIX}",
        evidence=f'{RTX}: "input has type Int32 but must have type FP8, FP4, Int4, Int8"',
        see=PARSER,
    ),
    Problem(
        code="unsupported-operator",
        severity=ERROR,
        title="A quantized operator that TensorRT lacks",
        cost=_REFUSED,
        fix=(
            "write the model in Q/DQ (ONNX Runtime: QuantFormat.QDQ), or convert it with "
            "qdq quantize"
        ),
        evidence=(
            f"{RTX}: the parser refuses QLinearConv, ConvInteger, MatMulInteger and "
            "DynamicQuantizeLinear"
        ),
        see=EXPLICIT,
    ),
    Problem(
        code="unsupported-type",
        severity=ERROR,
        title="Values quantized to a type that TensorRT does not read",
        cost=_REFUSED,
        fix=f"quantize to INT8, or {REPAIR_FIX}",
        evidence=(
            f'{RTX}: INT16, UINT16: "Failed to import initializer"; weights stored as UINT8: '
            '"unsupported input type of UINT8"'
        ),
        see=PARSER,
    ),
    Problem(
        code="stored-integers",
        severity=ERROR,
        title="Stored INT8 values that no DequantizeLinear reads directly, or that are a scalar",
        cost=_REFUSED,
        fix=(
            "store the values in the layout that the DequantizeLinear reads, and a scalar as a "
            f"float; or {REPAIR_FIX}"
        ),
        evidence=(
            f"{RTX}: INT8 read by Clip, Transpose, Reshape or Identity, and a scalar: "
            '"Quantized constant is only allowed before DQ"'
        ),
    ),
    Problem(
        code="uint8",
        severity=ERROR,
        title="UINT8 with zero point 0",
        cost=(
            "TensorRT reads it as INT8 without a warning. Values above 127 steps are clipped, and "
            "the results differ from those of ONNX Runtime."
        ),
        fix=f"quantize to INT8, or {REPAIR_FIX}, which keeps the range",
        evidence=f"{RTX}: builds, the layer in INT8",
        see=PARSER,
    ),
    Problem(
        code="no-zero-point",
        severity=ERROR,
        title="QuantizeLinear without a zero point",
        cost=(
            "ONNX reads that as UINT8, TensorRT as INT8. Results differ where values are negative "
            "or large."
        ),
        fix="add a zero point of 0 of type int8",
        evidence=f"{RTX}: builds, the layer in INT8",
        see=f"{PARSER}; {SPECIFICATION}",
    ),
    Problem(
        code="default-axis",
        severity=ERROR,
        title="Several scales and no axis attribute",
        cost=(
            "ONNX then means axis 1. TensorRT 10.6 and earlier read axis 0, so they scale the "
            "weight along another axis or refuse it."
        ),
        fix="write the axis attribute on the Q and the DQ",
        evidence=(f"{RTX}: reads axis 1 as ONNX does, and runs a Conv with such a weight in float"),
        see=PARSER,
    ),
    Problem(
        code="fp32-refused",
        severity=ERROR,
        title="A layer in FP32 that the target builds in FP16 only",
        cost="The compiler refuses the model.",
        fix="cast it with qdq cast MODEL -o OUTPUT --to fp16, or quantize it for this target",
        evidence=(
            "one-layer networks built with TensorRT-RTX 1.7.1 for rtx:sm75 (docs/kernels.md): "
            '"FP32 GEMM is not supported"'
        ),
        see=PRECISION_PAGE,
    ),
    Problem(
        code="engine-refuses",
        severity=ERROR,
        title="The compiler refuses the model",
        cost="There is no engine for this target.",
        fix=(
            "fix what the message names; qdq quantize --until-it-builds keeps in float what the "
            "target refuses"
        ),
        evidence=BUILT_ENGINE,
    ),
)
