"""The catalogue of what `qdq check` finds: each code with its severity, what it costs, how to mend it, and what that is known from."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

#: The documentation page that is made from this catalogue.
PAGE = "docs/findings.md"
_RTX = "built with TensorRT-RTX 1.7.1 for rtx:sm86"
_PARSER = "onnx-tensorrt, onnxOpImporters.cpp, QuantDequantLinearHelper"
_EXPLICIT = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
_ENGINES = (
    "engines of ResNet-18 on A100 published with trt-engine-explorer (NVIDIA/TensorRT, release/8.4)"
)
_RELATIONS = "the ONNX operator specification"
_AGAIN = "repair it with qdq quantize"


class Problem(msgspec.Struct, frozen=True):
    """One kind of finding."""

    #: Stable name, in kebab-case.
    code: str
    #: ``error``: TensorRT refuses or misreads it; ``warning``: it runs, but not in INT8 or slower; ``note``: it is suspicious.
    severity: str
    title: str
    #: What it costs.
    cost: str
    #: How to mend it.
    fix: str
    #: What was built or read, and with which version.
    evidence: str
    #: Where it is documented, "" where it is not.
    see: str = ""

    @property
    def page(self) -> str:
        """Where the documentation describes it, relative to the project's folder."""
        return f"{PAGE}#{self.code}"


_REFUSED = (
    Problem("zero-point", ERROR, "A zero point that is not 0",
            "TensorRT's parser refuses the model: it quantizes symmetrically only.",
            f"quantize symmetrically, or {_AGAIN}", f"{_RTX}: \"Non-zero zero point is not supported\"", _PARSER),
    Problem("scale-not-positive", ERROR, "A scale that is zero, negative or no number",
            "TensorRT's parser refuses the model.",
            "calibrate again; a tensor that held only zeros gets a small scale above 0", f"{_RTX}: \"Scale coefficients must all be positive\"", _PARSER),
    Problem("scale-count", ERROR, "As many scales or zero points as do not fit the tensor",
            "TensorRT's parser refuses the model.",
            "store one scale for each entry of the axis, and as many zero points", 
            f"{_RTX}: \"The number of scales is not equal to the number of output channels\"", _PARSER),
    Problem("scale-not-constant", ERROR, "A scale that is computed while the model runs",
            "TensorRT needs it when it builds; the parser of TensorRT-RTX 1.7.1 ends with a segmentation fault.",
            "store the scale as an initializer", f"{_RTX}: a scale that is a graph input ends the compiler with signal 11", _PARSER),
    Problem("scale-type", ERROR, "A scale of another float type than its tensor",
            "From opset 19 on the result of DequantizeLinear has the scale's type, so that the layer behind reads two types and the parser refuses it.",
            "store the scale in the type of the tensor", f"{_RTX}: FP16 scale in an FP32 graph: \"`input` and `kernel` must be of same type\"", _PARSER),
    Problem("int32-dequantize", ERROR, "DequantizeLinear of INT32, as ONNX Runtime writes quantized biases",
            "TensorRT's parser refuses the model.",
            f"store the bias as floats (ONNX Runtime: QuantizeBias False), or {_AGAIN}",
            f"{_RTX}: \"input has type Int32 but must have type FP8, FP4, Int4, Int8\"", _PARSER),
    Problem("unsupported-operator", ERROR, "A quantized operator that TensorRT lacks",
            "TensorRT's parser refuses the model.",
            "write the model in Q/DQ (ONNX Runtime: QuantFormat.QDQ), or convert it with qdq quantize",
            f"{_RTX}: refuses QLinearConv, ConvInteger, MatMulInteger and DynamicQuantizeLinear", _EXPLICIT),
    Problem("unsupported-type", ERROR, "Values quantized to a type that TensorRT does not read",
            "TensorRT's parser refuses the model.",
            f"quantize to INT8, or {_AGAIN}",
            f"{_RTX}: INT16, UINT16: \"Failed to import initializer\"; weights stored as UINT8: \"unsupported input type of UINT8\"", _PARSER),
    Problem("stored-integers", ERROR, "Stored INT8 values that no DequantizeLinear reads at once, or that are a scalar",
            "TensorRT's parser refuses the model.",
            f"store them as they reach the DequantizeLinear, a scalar as a float; or {_AGAIN}",
            f"{_RTX}: INT8 behind Clip, Transpose, Reshape or Identity, and a scalar: \"Quantized constant is only allowed before DQ\""),
    Problem("uint8", ERROR, "UINT8 with zero point 0",
            "TensorRT reads it as INT8 and says nothing: values above 127 steps are clipped, and the model gives other results than in ONNX Runtime.",
            f"quantize to INT8, or {_AGAIN}, which keeps the range", f"{_RTX}: builds, the layer in INT8", _PARSER),
    Problem("no-zero-point", ERROR, "QuantizeLinear without a zero point",
            "ONNX reads that as UINT8, TensorRT as INT8: results differ where values are negative or large.",
            "add a zero point of 0 of type int8", f"{_RTX}: builds, the layer in INT8", f"{_PARSER}; {_RELATIONS}"),
    Problem("default-axis", ERROR, "Several scales and no axis attribute",
            "ONNX then means axis 1; TensorRT 10.6 and earlier read axis 0, so the weight is scaled along another axis, or refused.",
            "write the axis attribute on the Q and the DQ", f"{_RTX}: reads axis 1 as ONNX does, and runs a Conv whose weight has it in float", _PARSER),
    Problem("engine-refuses", ERROR, "The compiler refuses the model",
            "There is no engine for this target.",
            "mend what the message names; qdq quantize --until-it-builds leaves what the target refuses in float", "what --engine built"),
)  # fmt: skip
_SLOW = (
    Problem("opset", WARNING, "An opset that lacks what the pairs use",
            "onnx.checker and ONNX Runtime refuse the model: scales along an axis need opset 13, FP8 19, INT4 21.",
            "export with that opset", f"{_RTX}: takes scales along an axis at opset 10 and 12 all the same", _RELATIONS),
    Problem("channel-scales", WARNING, "A computed tensor with one scale for each channel",
            "The layer runs in float: INT8 layers take one scale for an activation.",
            f"give the tensor one scale, or {_AGAIN}", f"{_RTX}: the convolution runs in float", _EXPLICIT),
    Problem("wrong-axis", WARNING, "A weight scaled along an axis that is not its output channels",
            "The layer runs in float.",
            f"scale it along the output channels, or {_AGAIN}", f"{_RTX}: a Conv weight along axis 1 runs in float, along axis 0 in INT8", _EXPLICIT),
    Problem("half-quantized", WARNING, "A weighted operator of which only some operands are quantized",
            "The layer runs in float, and the pairs in front of it cost time and accuracy for nothing.",
            f"{_AGAIN}, or remove the other pair too", f"{_RTX}: a Conv with a pair on its input alone, or on its weight alone, runs in float", _EXPLICIT),
    Problem("residual-in-float", WARNING, "The skip of a residual Add in float",
            "The convolution that is fused with the Add writes float, and what follows is quantized by a kernel of its own.",
            _AGAIN, f"{_ENGINES}: qat, 1130 queries/s with 12 reformats, against qat-residual, 1823 with 3", _EXPLICIT),
    Problem("pool-in-float", WARNING, "A pool between quantized layers that reads float",
            "The layer in front writes float, the pool reads it, and a kernel of its own quantizes the result.",
            _AGAIN, f"{_ENGINES}: qat-residual, 1823 queries/s, against qat-residual-qgap, 1990", _EXPLICIT),
    Problem("unequal-scales", WARNING, "Tensors that are joined or moved together with different scales",
            "A kernel converts one scale into the other; in front of a Concat without a pair behind it the next layer runs in float.",
            f"give them one scale: calibrate again with qdq, or {_AGAIN}", f"{_RTX}: a Conv behind a Concat of two scales runs in float, of one scale in INT8",
            "NVIDIA/TensorRT issue 4366"),
    Problem("pair-in-fusion", WARNING, "A pair between a weighted layer and what TensorRT fuses with it",
            "The pair rounds once more, and may split the fusion with batch normalisation, activation or Add.",
            f"remove it, or {_AGAIN}", f"placement recommendations 2 and 3; {_RTX} the layer stays in INT8", _EXPLICIT),
    Problem("pair-on-output", WARNING, "A pair on the output of a weighted layer",
            "The pair rounds before what follows, which may need the precision, and keeps what follows from being fused.",
            f"remove it, or {_AGAIN}", f"placement recommendation 2; {_RTX} the layer stays INT8", _EXPLICIT),
    Problem("no-kernel", WARNING, "A quantized layer that has no INT8 kernel on the target",
            "The compiler computes the pair and runs the layer in float: time and accuracy for nothing.",
            f"remove its pairs, or {_AGAIN} for this target", "one-layer networks built for each compute capability (docs/kernels.md)", _EXPLICIT),
    Problem("missing-pair", WARNING, "An edge that the rules quantize and the model does not",
            "What reads it runs in float, or needs a conversion.",
            f"{_AGAIN}, or keep it in float with leave_float in the project file", "the rule that is named", _EXPLICIT),
    Problem("unwanted-pair", WARNING, "A pair that no rule asks for",
            "It rounds and costs time, and no INT8 layer gains from it.",
            f"remove it, or {_AGAIN}", "placement recommendation 6: pairs that are not fused cost time", _EXPLICIT),
    Problem("element-type", WARNING, "Another quantized type than the rules ask for",
            "The layer runs in another type than the target was chosen for.",
            "check with the rules it was made by, or quantize it again", "the rule that is named"),
    Problem("engine-float", WARNING, "A layer with all its pairs that the compiler runs in float",
            "The pairs cost time and accuracy for nothing.",
            "leave the layer in float for this target", "what --engine built"),
)  # fmt: skip
_SUSPICIOUS = (
    Problem("engine-kernel", NOTE, "A pair that is a kernel of its own in the engine",
            "One more kernel reads and writes the whole tensor.",
            "look at what stands on both sides of it: qdq explain", "what --engine built"),
    Problem("not-quantized", NOTE, "A model without any quantization",
            "It runs in float.",
            "qdq quantize it, or leave it out of what is checked", "no quantized operator in the file"),
    Problem("weight-per-tensor", NOTE, "Weights with one scale where each channel may have one",
            "Accuracy: the narrow channels of a weight share the steps of the widest. The layers run in INT8.",
            f"scale weights along their output channels, or {_AGAIN}", f"{_RTX}: a Conv weight of one scale runs in INT8", _EXPLICIT),
    Problem("tiny-scale", NOTE, "A scale that is denormal",
            "A GPU that flushes such numbers divides by zero; the tensor held nothing, or calibration went wrong.",
            "calibrate again", f"{_RTX}: builds"),
    Problem("saturated-weights", NOTE, "Many weights at the ends of the range",
            "They were clipped: the scale is too small for them.",
            "choose the scale from the weights: their largest value over 127",
            "more than 1 in 20 weights at the ends, besides the largest of each channel"),
    Problem("weight-scale", NOTE, "A weight scale far from the weights' own maximum",
            "Too large, it wastes levels; too small, it clips.",
            "choose the scale from the weights: their largest value over 127",
            "127 steps are over 4 times the largest weight of a channel, or under a quarter of it"),
    Problem("lone-quantize", NOTE, "A QuantizeLinear that no DequantizeLinear reads",
            "It makes no INT8 layer.",
            "remove it, or complete the pair; an INT8 graph output is fine and is not reported", f"{_RTX}: an INT8 graph output builds"),
    Problem("lone-dequantize", NOTE, "A DequantizeLinear that reads no QuantizeLinear",
            "It makes no INT8 layer.",
            "remove it, or complete the pair; an INT8 graph input is fine and is not reported", f"{_RTX}: an INT8 graph input builds"),
    Problem("duplicate-pair", NOTE, "A pair directly behind another",
            "With the same scale it does nothing; with another it rounds twice.",
            "remove one of the two", f"{_RTX}: builds, the layer in INT8"),
    Problem("unequal-halves", NOTE, "A QuantizeLinear of another scale than its DequantizeLinear",
            "The tensor is multiplied by the ratio of the two, which is hardly what was meant.",
            "give both halves the same scale", f"{_RTX}: builds, the layer in INT8; neither side checks it", _RELATIONS),
)  # fmt: skip

#: All kinds of findings by code, errors first.
PROBLEMS: Mapping[str, Problem] = {
    problem.code: problem for problem in (*_REFUSED, *_SLOW, *_SUSPICIOUS)
}
