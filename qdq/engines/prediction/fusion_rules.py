"""The documented behaviour of TensorRT that a predicted engine follows, with its sources."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_PLACEMENT = "TensorRT documentation, Q/DQ layer-placement recommendations"
_PROPAGATION = "TensorRT documentation, Q/DQ propagation"
_FUSIONS = "TensorRT documentation, layer fusion catalog"
_ENGINES = "engines published with trt-engine-explorer"
_RESNET18 = f"{_ENGINES} (ResNet-18, A100)"
_FORMATS = f"NvInferRuntime.h, TensorFormat; {_RESNET18}"
_RTX = "observed in engines of TensorRT-RTX 1.7"
_RTX_ONLY = f"{_RTX}; not documented for TensorRT"


class FusionRule(msgspec.Struct, frozen=True):
    """A documented behaviour that a predicted layer follows."""

    name: str
    description: str
    #: Where the behaviour is documented.
    source: str


_RULES = (
    FusionRule(
        name="int8-operands",
        description="A weighted layer with pairs on all its inputs multiplies in INT8. It writes "
        "INT8 if every reader quantizes alike.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="float-result",
        description="An INT8 layer writes float if any reader reads float. A Q after it is a "
        "separate layer.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="residual-int8",
        description="A convolution and its residual Add run as one INT8 layer if the Add's other "
        "operand is INT8 and the sum is quantized.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="residual-float",
        description="If the Add's other operand or its reader is float, the fused convolution "
        "writes float. A Q after it is a separate layer.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="few-channels",
        description="A first INT8 convolution of up to four channels reads four-wide vectors.",
        source=_FORMATS,
    ),
    FusionRule(
        name="convolution-and-pool",
        description="A first INT8 convolution, its activation and a max pool with INT8 results "
        "run as one layer.",
        source=f"{_FUSIONS}; {_RESNET18}",
    ),
    FusionRule(
        name="depthwise-int8",
        description="A depthwise convolution with pairs on its inputs runs in a separate INT8 "
        "kernel.",
        source=_ENGINES,
    ),
    FusionRule(
        name="recurrent-int8",
        description="An LSTM, GRU or RNN multiplies its whole input by W in INT8 if both have "
        "pairs.",
        source=_RTX_ONLY,
    ),
    FusionRule(
        name="recurrence",
        description="The product of the hidden state with R and the gates run in float.",
        source=_RTX,
    ),
    FusionRule(
        name="float-operands",
        description="A weighted layer without pairs on all its inputs multiplies in float.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="grouped-channels",
        description="A grouped INT8 convolution needs a multiple of four channels per group. "
        "This one runs in float.",
        source="NvInfer.h, setNbGroups",
    ),
    FusionRule(
        name="deconvolution-3d",
        description="A 3-D ConvTranspose with Q/DQ runs in float.",
        source="NVIDIA/TensorRT issue 4668",
    ),
    FusionRule(
        name="commutes",
        description="A layer that only moves values, or takes their maximum, runs in INT8: Q "
        "moves backward and DQ forward past it.",
        source=_PROPAGATION,
    ),
    FusionRule(
        name="moves-float",
        description="A layer that only moves values keeps the type it reads.",
        source=_PROPAGATION,
    ),
    FusionRule(
        name="quantized-pool",
        description="An average pool with a DQ before it and a Q after it runs in INT8.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="float-pool",
        description="An average pool without both runs in float: a layer without weights that "
        "reads INT8 must also write INT8.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="pointwise",
        description="Neighbouring point-wise operators run as one generated kernel.",
        source=_FUSIONS,
    ),
    FusionRule(
        name="quantized-pointwise",
        description="A point-wise kernel writes INT8 itself if all its readers quantize.",
        source=f"{_PLACEMENT}; NVIDIA/TensorRT issues 3205 and 3542",
    ),
    FusionRule(
        name="generated",
        description="A generated kernel (normalization, softmax, reduction) writes INT8 itself if "
        "a Q reads it, next to the float result for other readers.",
        source=_RTX_ONLY,
    ),
    FusionRule(
        name="view",
        description="A reshape copies nothing.",
        source=_FUSIONS,
    ),
    FusionRule(
        name="concat",
        description="Layers write their results into a Concat's output in place. A graph input, "
        "or a tensor that is part of another Concat, is copied.",
        source="Model Optimizer, get_concat_eliminated_tensors",
    ),
    FusionRule(
        name="alone",
        description="An operator that no fusion covers is a layer.",
        source=_FUSIONS,
    ),
    FusionRule(
        name="stand-alone-quantize",
        description="A Q that the layer before it cannot absorb is a layer.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="stand-alone-dequantize",
        description="A DQ before a layer that computes in float is a layer.",
        source=_PLACEMENT,
    ),
    FusionRule(
        name="reformat",
        description="A copy converts a tensor where two layers need different types or memory "
        "formats.",
        source=_FORMATS,
    ),
)

FUSION_RULES: Mapping[str, FusionRule] = {rule.name: rule for rule in _RULES}
