"""The documented behaviour of TensorRT that a predicted engine follows, each rule with its source."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_PLACEMENT = "TensorRT documentation, Q/DQ layer-placement recommendations"
_ENGINES = "engines published with trt-engine-explorer (ResNet-18, A100)"
_FORMATS = f"NvInferRuntime.h, TensorFormat; {_ENGINES}"
_FUSIONS = "TensorRT documentation, layer fusion catalog"


class FusionRule(msgspec.Struct, frozen=True):
    """A documented behaviour that a predicted layer follows."""

    name: str
    description: str
    #: Where it is documented.
    source: str


FUSION_RULES: Mapping[str, FusionRule] = {
    rule.name: rule
    for rule in (
        FusionRule("int8-operands", "A weighted layer with pairs on all its inputs multiplies in INT8 and writes INT8 if every reader quantizes alike.", _PLACEMENT),
        FusionRule("float-result", "An INT8 layer whose result somebody reads in float writes float; a Q behind it stays a layer.", _PLACEMENT),
        FusionRule("residual-int8", "A convolution and its residual Add run as one INT8 layer if the Add's other operand is INT8 and the sum quantized.", _PLACEMENT),
        FusionRule("residual-float", "If the Add's other operand or its reader is float, the fused convolution writes float; a Q behind stays a layer.", _PLACEMENT),
        FusionRule("few-channels", "A first INT8 convolution of up to four channels reads four-wide vectors.", _FORMATS),
        FusionRule("convolution-and-pool", "A first INT8 convolution, its activation and a max pool with INT8 results run as one layer.", f"{_FUSIONS}; {_ENGINES}"),
        FusionRule("depthwise-int8", "A depthwise convolution with pairs on its inputs has an INT8 kernel of its own.", "engines published with trt-engine-explorer"),
        FusionRule("recurrent-int8", "The product of an LSTM's, GRU's or RNN's whole input with W multiplies in INT8 if both have pairs.",
             "seen in engines of TensorRT-RTX 1.7; not documented for TensorRT"),
        FusionRule("recurrence", "The product of the hidden state with R and the gates stay in float.", "seen in engines of TensorRT-RTX 1.7"),
        FusionRule("float-operands", "A weighted layer without pairs on all its inputs multiplies in float.", _PLACEMENT),
        FusionRule("grouped-channels", "A grouped INT8 convolution needs a multiple of four channels a group; this one runs in float.", "NvInfer.h, setNbGroups"),
        FusionRule("deconvolution-3d", "A 3-D ConvTranspose with Q/DQ runs in float.", "NVIDIA/TensorRT issue 4668"),
        FusionRule("commutes", "Q moves backward and DQ forward past a layer that only moves values, or takes the larger: it runs in INT8.",
             "TensorRT documentation, Q/DQ propagation"),
        FusionRule("moves-float", "A layer that only moves values keeps the type it reads.", "TensorRT documentation, Q/DQ propagation"),
        FusionRule("quantized-pool", "An average pool with DQ in front and Q behind runs in INT8.", _PLACEMENT),
        FusionRule("float-pool", "An average pool without both stays in float: layers without weights that read INT8 must write it too.", _PLACEMENT),
        FusionRule("pointwise", "Neighbouring point-wise operators become one generated kernel.", _FUSIONS),
        FusionRule("quantized-pointwise", "A point-wise kernel whose readers all quantize writes INT8 itself.",
             f"{_PLACEMENT}; NVIDIA/TensorRT issues 3205 and 3542"),
        FusionRule("generated", "A generated kernel (normalization, softmax, reduction) writes INT8 itself if a Q reads it, beside what others read.",
             "seen in engines of TensorRT-RTX 1.7; not documented for TensorRT"),
        FusionRule("view", "A reshape copies nothing.", _FUSIONS),
        FusionRule("shuffle", "Neighbouring shuffles become one.", _FUSIONS),
        FusionRule("concat", "Layers write their results into a Concat's output in place; a graph input, or what lies in another Concat already, is copied.",
             "Model Optimizer, get_concat_eliminated_tensors"),
        FusionRule("alone", "An operator that no fusion covers is a layer.", _FUSIONS),
        FusionRule("stand-alone-quantize", "A Q that no layer in front can take in is a layer.", _PLACEMENT),
        FusionRule("stand-alone-dequantize", "A DQ in front of a layer that computes in float is a layer.", _PLACEMENT),
        FusionRule("reformat", "Where two layers disagree on a tensor's type or memory format, a copy converts it.", _FORMATS),
    )
}  # fmt: skip
