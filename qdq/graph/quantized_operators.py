"""Quantized operators of ONNX and ONNX Runtime, and the float operator that each one replaces.

A quantized operator computes the float operator between DequantizeLinear and QuantizeLinear.
"""

from __future__ import annotations

import re

import msgspec
from onnx import AttributeProto, NodeProto

from qdq.errors import ModelError

#: The operators of a pair.
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

#: The domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"


class Operand(msgspec.Struct, frozen=True):
    """The input slots of one quantized tensor: the tensor, its scale and its zero point."""

    tensor: int
    scale: int
    zero_point: int


class FloatForm(msgspec.Struct, frozen=True):
    """The float operator that a quantized one is equivalent to, and the slots of its operands."""

    op: str
    operands: tuple[Operand, ...]
    #: Slots of the result's scale and zero point; None where the result is float.
    result: tuple[int, int] | None
    #: Slot of an INT32 bias, whose scale is the product of the operands'.
    bias: int | None = None
    #: Slot of an input that is passed on unchanged, before the operands.
    first: int | None = None
    #: Slot of a float tensor that is added to the result.
    added: int | None = None
    #: Axis of the second operand's scales, where it has several; -1 for the last.
    axis: int = -1


_BINARY = (Operand(0, 1, 2), Operand(3, 4, 5))
_UNARY = (Operand(0, 1, 2),)
_WHERE = (Operand(1, 2, 3), Operand(4, 5, 6))

#: By operator, in any domain: ONNX's QLinearConv and QLinearMatMul, and the operators that ONNX
#: Runtime writes (ContribOperators.md).
_FORMS = {
    "QLinearConv": FloatForm("Conv", _BINARY, (6, 7), bias=8, axis=0),
    "QLinearMatMul": FloatForm("MatMul", _BINARY, (6, 7)),
    "QLinearAdd": FloatForm("Add", _BINARY, (6, 7)),
    "QLinearMul": FloatForm("Mul", _BINARY, (6, 7)),
    "QLinearSigmoid": FloatForm("Sigmoid", _UNARY, (3, 4)),
    "QLinearLeakyRelu": FloatForm("LeakyRelu", _UNARY, (3, 4)),
    "QLinearAveragePool": FloatForm("AveragePool", _UNARY, (3, 4)),
    "QLinearGlobalAveragePool": FloatForm("GlobalAveragePool", _UNARY, (3, 4)),
    "QLinearSoftmax": FloatForm("Softmax", _UNARY, (3, 4)),
    "QLinearReduceMean": FloatForm("ReduceMean", _UNARY, (3, 4)),
    "QLinearWhere": FloatForm("Where", _WHERE, (7, 8), first=0),
}

#: Operators that multiply integers and leave their scales to the nodes after them.
INTEGER_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}

#: Operators that quantize their inputs at run time.
DYNAMIC_OPERATORS = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")

#: Quantized operators of ONNX Runtime that have no Q/DQ form here.
_OTHERS = (
    "QAttention",
    "QEmbedLayerNormalization",
    "QMoE",
    "MatMulNBits",
    "MatMulFpQ4",
    "MatMulBnb4",
    "MatMulInteger16",
    "MulInteger",
    "ReduceSumInteger",
    "GatherBlockQuantized",
    "QOrderedAttention",
    "QOrderedGelu",
    "QOrderedLayerNormalization",
    "QOrderedLongformerAttention",
    "QOrderedMatMul",
    "QuantizeWithOrder",
    "DequantizeWithOrder",
    "QuantizeBFP",
    "DequantizeBFP",
)

#: Quantized operators of ONNX Runtime whose inputs or attributes decide the float form.
_VARIABLE = ("QLinearConcat", "QGemm", "MatMulIntegerToFloat")

#: TensorRT's operators that quantize; `tensorrt_pairs` replaces those that ONNX has too.
_TENSORRT_OPERATOR = re.compile(r"TRT_\w*(Quantize|Dequantize|QDQ)\w*")

#: Attributes that the float operators lack.
_FOREIGN = ("channels_last", "opset")

#: The first opset whose Softmax works along one axis (ONNX operator changelog).
_SOFTMAX_OPSET = 13

#: The slot of QGemm's y_scale.
_GEMM_RESULT_SCALE = 7


def is_quantized_operator(node: NodeProto) -> bool:
    """Whether a node computes on quantized tensors by an operator that TensorRT lacks."""
    return is_quantized_operator_id(node.domain, node.op_type)


def is_quantized_operator_id(domain: str, operator: str) -> bool:
    """Whether an operator of a domain computes on quantized tensors, and TensorRT lacks it."""
    if operator in _FORMS or operator in INTEGER_PRODUCTS or operator in DYNAMIC_OPERATORS:
        return True
    return domain == MICROSOFT and (operator in _VARIABLE or operator in _OTHERS)


def is_tensorrt_operator(node: NodeProto) -> bool:
    """Whether a node quantizes by an operator of TensorRT that ONNX's Q/DQ cannot replace.

    Examples: TRT_MXFP8DequantizeLinear, TRT_FP4DynamicQuantize.
    """
    return _TENSORRT_OPERATOR.fullmatch(node.op_type) is not None


def is_quantized(node: NodeProto) -> bool:
    """Whether only a quantized model contains such a node."""
    return is_quantized_id(node.domain, node.op_type)


def is_quantized_id(domain: str, operator: str) -> bool:
    """Whether only a quantized model contains an operator of a domain."""
    if operator in (QUANTIZE, DEQUANTIZE) or _TENSORRT_OPERATOR.fullmatch(operator) is not None:
        return True
    return is_quantized_operator_id(domain, operator)


def find_float_form(node: NodeProto) -> FloatForm | None:
    """Return the float form of a quantized operator, None for another operator.

    Raises ModelError for one whose attributes the float operator cannot express.
    """
    form = _FORMS.get(node.op_type)
    if node.domain == MICROSOFT and node.op_type in _VARIABLE:
        form = _make_variable_form(node)
    if form is not None and _integer_attribute(node, "channels_last", 0):
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) has its channels last, "
            "which no float operator of ONNX has. Export the model with channels first."
        )
    return form


def _make_variable_form(node: NodeProto) -> FloatForm:
    """Return the form of an operator whose inputs or attributes decide it."""
    if node.op_type == "QLinearConcat":
        parts = []
        for start in range(2, len(node.input), 3):
            parts.append(Operand(start, start + 1, start + 2))
        return FloatForm("Concat", tuple(parts), (0, 1))
    if node.op_type == "QGemm":
        axis = 0 if _integer_attribute(node, "transB", 0) else 1
        has_scale = any(node.input[_GEMM_RESULT_SCALE : _GEMM_RESULT_SCALE + 1])
        result = (7, 8) if has_scale else None
        return FloatForm("Gemm", _BINARY, result, bias=6, axis=axis)
    factors = (Operand(0, 2, 4), Operand(1, 3, 5))
    return FloatForm("MatMul", factors, None, added=6)


def float_attributes(node: NodeProto) -> list[AttributeProto]:
    """Return the attributes that the float operator has too."""
    return [attribute for attribute in node.attribute if attribute.name not in _FOREIGN]


def flattened_axis(node: NodeProto) -> int | None:
    """Return the first of the axes that a QLinearSoftmax flattens into one.

    Softmax did so before opset 13. None for every other node, and for the last axis alone.
    """
    if node.op_type != "QLinearSoftmax":
        return None
    if _integer_attribute(node, "opset", _SOFTMAX_OPSET) >= _SOFTMAX_OPSET:
        return None
    axis = _integer_attribute(node, "axis", 1)
    return None if axis == -1 else axis


def _integer_attribute(node: NodeProto, name: str, default: int) -> int:
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    return default
