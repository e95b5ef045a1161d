"""Quantized operators of ONNX and ONNX Runtime, and the float operator that each computes between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

import msgspec
import onnx

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
    """How a quantized operator reads as a float one."""

    op: str
    operands: tuple[Operand, ...]
    #: Slots of the result's scale and zero point; None where the result is float.
    result: tuple[int, int] | None
    #: Slot of an INT32 bias, whose scale is the product of the operands'.
    bias: int | None = None
    #: Slot of an input that is passed on as it is, in front of the operands.
    first: int | None = None
    #: Slot of a float tensor that is added to the result.
    added: int | None = None
    #: Axis of the second operand's scales, where it has several; -1 for the last.
    axis: int = -1


_BINARY = (Operand(0, 1, 2), Operand(3, 4, 5))
_UNARY = (Operand(0, 1, 2),)

#: By operator, whatever its domain: ONNX's QLinearConv and QLinearMatMul, and what ONNX Runtime writes (ContribOperators.md).
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
    "QLinearWhere": FloatForm("Where", (Operand(1, 2, 3), Operand(4, 5, 6)), (7, 8), first=0),
}

#: Operators that multiply integers and leave their scales to the nodes behind them.
INTEGER_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}

#: Operators that quantize what they read while they run.
DYNAMIC_OPERATORS = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")

#: Quantized operators of ONNX Runtime that have no Q/DQ form here.
_OTHERS = (
    "QAttention", "QEmbedLayerNormalization", "QMoE", "MatMulNBits", "MatMulFpQ4", "MatMulBnb4", "MatMulInteger16", "MulInteger", "ReduceSumInteger",
    "GatherBlockQuantized", "QOrderedAttention", "QOrderedGelu", "QOrderedLayerNormalization", "QOrderedLongformerAttention", "QOrderedMatMul",
    "QuantizeWithOrder", "DequantizeWithOrder", "QuantizeBFP", "DequantizeBFP",
)  # fmt: skip
_VARIABLE = ("QLinearConcat", "QGemm", "MatMulIntegerToFloat")

#: Attributes that the float operators do not have.
_FOREIGN = ("channels_last", "opset")

#: The opset from which on Softmax works along one axis (ONNX operator changelog).
_SOFTMAX_OPSET = 13


def is_quantized_operator(node: onnx.NodeProto) -> bool:
    """Whether a node computes on quantized tensors by an operator that TensorRT lacks."""
    own = node.op_type in (*_FORMS, *INTEGER_PRODUCTS, *DYNAMIC_OPERATORS)
    return own or (node.domain == MICROSOFT and node.op_type in (*_VARIABLE, *_OTHERS))


def is_quantized(node: onnx.NodeProto) -> bool:
    """Whether only a quantized model contains such a node."""
    return node.op_type in (QUANTIZE, DEQUANTIZE) or is_quantized_operator(node)


def find_float_form(node: onnx.NodeProto) -> FloatForm | None:
    """Return how a quantized operator reads as a float one, None for another operator.

    Raises ModelError for one whose attributes the float operator cannot follow.
    """
    form = _FORMS.get(node.op_type)
    if node.domain == MICROSOFT and node.op_type in _VARIABLE:
        form = _variable(node)
    if form is not None and _attribute(node, "channels_last", 0):
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) has its channels last, which no float operator of ONNX does; export the model with them first"
        )
    return form


def _variable(node: onnx.NodeProto) -> FloatForm:
    """Return the form of an operator whose inputs or attributes decide it."""
    if node.op_type == "QLinearConcat":
        starts = range(2, len(node.input), 3)
        return FloatForm("Concat", tuple(Operand(i, i + 1, i + 2) for i in starts), (0, 1))
    if node.op_type == "QGemm":
        quantized = len(node.input) > 7 and node.input[7] != ""  # noqa: PLR2004 the slot of y_scale
        return FloatForm(
            "Gemm",
            _BINARY,
            (7, 8) if quantized else None,
            bias=6,
            axis=0 if _attribute(node, "transB", 0) else 1,
        )
    return FloatForm("MatMul", (Operand(0, 2, 4), Operand(1, 3, 5)), None, added=6)


def float_attributes(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    """Return the attributes that the float operator has too."""
    return [a for a in node.attribute if a.name not in _FOREIGN]


def flattened_axis(node: onnx.NodeProto) -> int | None:
    """Return the axis from which on a QLinearSoftmax takes all axes as one, as Softmax did before opset 13; None for every other node."""
    if (
        node.op_type != "QLinearSoftmax"
        or _attribute(node, "opset", _SOFTMAX_OPSET) >= _SOFTMAX_OPSET
    ):
        return None
    axis = _attribute(node, "axis", 1)
    return None if axis == -1 else axis


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
