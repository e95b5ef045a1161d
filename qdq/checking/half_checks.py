"""Problems of a single Q or DQ node, and of a pair whose halves differ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from qdq.arrays import Array
from qdq.checking.pair_halves import PairHalf
from qdq.checking.scale_comparison import are_positive

_TYPES = onnx.TensorProto.DataType
_UINT8 = _TYPES.Value("UINT8")
_INT8 = _TYPES.Value("INT8")
_INT32 = _TYPES.Value("INT32")

#: Types that TensorRT reads, each with the first opset whose Q/DQ takes it (ONNX operator
#: changelog).
_READABLE_TYPES = {
    _INT8: 10,
    _UINT8: 10,
    _TYPES.Value("FLOAT8E4M3FN"): 19,
    _TYPES.Value("INT4"): 21,
    _TYPES.Value("FLOAT4E2M1"): 23,
}

#: Types whose stored values only a DequantizeLinear may read.
QUANTIZED_CONSTANT_TYPES = frozenset(_READABLE_TYPES) - {_UINT8}

#: Types that came after opset 10 and that TensorRT does not read, each with its first opset.
_UNREADABLE_TYPES = {
    _TYPES.Value("FLOAT8E4M3FNUZ"): 19,
    _TYPES.Value("FLOAT8E5M2"): 19,
    _TYPES.Value("FLOAT8E5M2FNUZ"): 19,
    _TYPES.Value("UINT4"): 21,
    _TYPES.Value("INT16"): 21,
    _TYPES.Value("UINT16"): 21,
}

_TYPE_OPSETS = _READABLE_TYPES | _UNREADABLE_TYPES

#: The first opset with each attribute of QuantizeLinear (ONNX operator changelog).
_ATTRIBUTE_OPSETS = {"saturate": 19, "block_size": 21, "output_dtype": 21, "precision": 23}

#: The first opset with an axis of scales.
_AXIS_OPSET = 13

#: The first opset whose Q/DQ takes floats of 16 bits.
_SHORT_FLOAT_OPSET = 19

#: The first opset in which a DequantizeLinear has a result of its scale's type.
_SCALE_TYPE_OPSET = 19

_SHORT_FLOATS = {_TYPES.Value(name): name for name in ("FLOAT16", "BFLOAT16")}
_FLOAT_TYPES = {_TYPES.Value(name): name for name in ("FLOAT", "FLOAT16", "BFLOAT16")}

#: The axis of several scales where the attribute is absent (ONNX operators QuantizeLinear and
#: DequantizeLinear).
_DEFAULT_AXIS = 1

#: The least float32 that is not denormal.
_LEAST_NORMAL = float(np.finfo(np.float32).tiny)

#: Scales of a Q and a DQ that differ by a smaller share are equal.
_SCALE_TOLERANCE = 1e-3

#: A code and the sentence that describes the problem.
CodedProblem = tuple[str, str]


def check_half(half: PairHalf, opset: int) -> Iterator[CodedProblem]:
    """Yield the problems of a Q or DQ."""
    if not half.is_quantize and _INT32 in (half.dtype, half.input_type):
        yield "int32-dequantize", "the DequantizeLinear reads INT32, as for a quantized bias"
        return
    yield from _check_scale_values(half)
    yield from _check_scale_count(half)
    yield from _check_quantized_type(half)
    if opset >= _SCALE_TYPE_OPSET:
        yield from _check_scale_type(half)


def _check_scale_values(half: PairHalf) -> Iterator[CodedProblem]:
    scales = half.scales
    if scales is None:
        yield "scale-not-constant", f"the scale {half.scale!r} is computed"
    elif not are_positive(scales):
        yield "scale-not-positive", f"the scale {half.scale!r} is {_describe_worst(scales)}"
    elif scales.size:
        least = float(scales.min()) if scales.size > 1 else scales.item()
        if least < _LEAST_NORMAL:
            yield "tiny-scale", f"the scale {half.scale!r} is {least:.3g}"


def _describe_worst(scales: Array) -> str:
    """Return the first scale that is not finite, else the least, with its channel."""
    values = scales.astype(np.float64).reshape(-1)
    is_infinite = ~np.isfinite(values)
    position = int(np.argmax(is_infinite) if is_infinite.any() else np.argmin(values))
    worst = f"{values[position]:.6g}"
    if scales.ndim != 1 or scales.size == 1:
        return worst
    return f"{worst} in channel {position} of {scales.size}"


def _check_scale_count(half: PairHalf) -> Iterator[CodedProblem]:
    scales = half.scales
    if scales is None or half.has_blocks:
        return
    count = scales.size
    if half.zeros is not None and half.zeros.size != count:
        yield "scale-count", f"there are {count} scales and {half.zeros.size} zero points"
        return
    if scales.ndim != 1 or count == 1:
        return
    axis = _DEFAULT_AXIS if half.axis is None else half.axis
    size = _axis_size(half.dims, axis)
    if size is not None and size != count:
        problem = f"there are {count} scales for axis {axis} of size {size}"
        if half.axis is None:
            problem += "; the axis is 1 because the attribute is absent"
        yield "scale-count", problem
    elif half.axis is None:
        yield "default-axis", f"there are {count} scales and no axis attribute"


def _axis_size(dims: tuple[int | None, ...] | None, axis: int) -> int | None:
    """Return the size of an axis, 0 for an axis that does not exist, None where it is unknown."""
    if dims is None:
        return None
    return dims[axis] if -len(dims) <= axis < len(dims) else 0


def _check_quantized_type(half: PairHalf) -> Iterator[CodedProblem]:
    """Yield the problem of the quantized type or of the zero point, one at most."""
    is_stored = half.reads_stored_values
    zero_point = _find_nonzero(half.zeros)
    if half.dtype and half.dtype not in _READABLE_TYPES:
        name = _TYPES.Name(half.dtype)
        yield "unsupported-type", _describe_type(name, is_stored)
    elif zero_point is not None:
        yield "zero-point", f"the zero point is {zero_point}"
    elif half.is_quantize and not half.dtype and not half.zero_point:
        problem = "the QuantizeLinear has no zero point: ONNX reads that as UINT8, TensorRT as INT8"
        yield "no-zero-point", problem
    elif is_stored and half.dtype == _UINT8:
        yield "unsupported-type", _describe_type("UINT8", is_stored)
    elif half.dtype == _UINT8:
        yield "uint8", "the tensor is quantized to UINT8 with zero point 0; TensorRT reads INT8"


def _find_nonzero(zeros: Array | None) -> str | None:
    """Return the first zero point that is not 0, as text; None where there is none."""
    if zeros is None or (zeros.dtype.kind in "iu" and not np.count_nonzero(zeros)):
        return None
    positions = np.flatnonzero(zeros.astype(np.float32))
    return str(zeros.reshape(-1)[positions[0]]) if positions.size else None


def _describe_type(name: str, is_stored: bool) -> str:
    if is_stored:
        return f"the tensor is stored as {name}"
    return f"the tensor is quantized to {name}"


def _check_scale_type(half: PairHalf) -> Iterator[CodedProblem]:
    """Yield the problem of a Q whose scale has another float type than its input."""
    if not half.is_quantize:
        return
    scale_name = _FLOAT_TYPES.get(half.scale_type)
    input_name = _FLOAT_TYPES.get(half.input_type)
    if scale_name and input_name and scale_name != input_name:
        yield "scale-type", f"the scale is {scale_name}, but the tensor is {input_name}"


def required_opsets(half: PairHalf) -> Iterator[tuple[int, str]]:
    """Yield the opsets that a Q or DQ requires, each with the feature that requires it."""
    has_several_scales = half.scales is not None and half.scales.size > 1
    if half.axis is not None or has_several_scales:
        yield _AXIS_OPSET, "an axis of scales"
    opset = _TYPE_OPSETS.get(half.dtype, 0)
    if opset > _AXIS_OPSET:
        yield opset, _TYPES.Name(half.dtype)
    for code in (half.scale_type, half.input_type):
        if code in _SHORT_FLOATS:
            yield _SHORT_FLOAT_OPSET, f"{half.operator} of {_SHORT_FLOATS[code]}"
    for attribute in half.attributes:
        if attribute in _ATTRIBUTE_OPSETS:
            yield _ATTRIBUTE_OPSETS[attribute], f"the attribute {attribute}"


def find_unequal_scales(halves: list[PairHalf]) -> tuple[float, float] | None:
    """Return the first scales of a Q and its DQ that differ, None where all are equal."""
    if len(halves) < 2 or halves[0].scale == halves[1].scale:  # noqa: PLR2004 Q and DQ
        return None
    q_scales, dq_scales = (half.scales for half in halves)
    if q_scales is None or dq_scales is None or q_scales.size != dq_scales.size:
        return None
    q_values, dq_values = q_scales.reshape(-1), dq_scales.reshape(-1)
    is_close = np.isclose(q_values, dq_values, rtol=_SCALE_TOLERANCE, atol=0.0)
    if is_close.all():
        return None
    position = int(np.argmax(~is_close))
    return float(q_values[position]), float(dq_values[position])
