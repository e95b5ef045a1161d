"""Problems of models that run, but slower or not in INT8."""

from __future__ import annotations

from qdq.checking.problem import (
    BUILT_ENGINE,
    ENGINES,
    EXPLICIT,
    PRECISION_PAGE,
    REPAIR_FIX,
    RTX,
    SPECIFICATION,
    WARNING,
    Problem,
)

_RULE = "the rule that the finding names"

WARNING_PROBLEMS = (
    Problem(
        code="opset",
        severity=WARNING,
        title="An opset that lacks what the pairs use",
        cost=(
            "onnx.checker and ONNX Runtime refuse the model. Scales along an axis need opset 13, "
            "FP16 and FP8 need 19, INT4, INT16 and scales in blocks need 21."
        ),
        fix=f"export with that opset, or {REPAIR_FIX}",
        evidence=(
            f"{RTX}: accepts scales along an axis even at opset 10 and 12, and FP16 at opset 17"
        ),
        see=SPECIFICATION,
    ),
    Problem(
        code="channel-scales",
        severity=WARNING,
        title="A computed tensor with one scale per channel",
        cost="The layer runs in float: INT8 layers take one scale for an activation.",
        fix=f"give the tensor one scale, or {REPAIR_FIX}",
        evidence=f"{RTX}: the convolution runs in float",
        see=EXPLICIT,
    ),
    Problem(
        code="wrong-axis",
        severity=WARNING,
        title="A weight scaled along an axis that is not its output channels",
        cost="The layer runs in float.",
        fix=f"scale the weight along its output channels, or {REPAIR_FIX}",
        evidence=f"{RTX}: a Conv weight along axis 1 runs in float, along axis 0 in INT8",
        see=EXPLICIT,
    ),
    Problem(
        code="half-quantized",
        severity=WARNING,
        title="A weighted operator of which only some operands are quantized",
        cost=(
            "The layer runs in float, and the pairs on its inputs cost time and accuracy for "
            "nothing."
        ),
        fix=f"{REPAIR_FIX}, or remove the other pair too",
        evidence=(
            f"{RTX}: a Conv with a pair on its input alone, or on its weight alone, runs in float"
        ),
        see=EXPLICIT,
    ),
    Problem(
        code="residual-in-float",
        severity=WARNING,
        title="The skip connection of a residual Add in float",
        cost=(
            "The convolution that is fused with the Add writes float, and a separate kernel "
            "quantizes the input of the next layer."
        ),
        fix=REPAIR_FIX,
        evidence=(
            f"{ENGINES}: qat, 1130 queries/s with 12 reformats, against qat-residual, 1823 with 3"
        ),
        see=EXPLICIT,
    ),
    Problem(
        code="pool-in-float",
        severity=WARNING,
        title="A pool between quantized layers that reads float",
        cost=(
            "The layer before the pool writes float, the pool reads float, and a separate kernel "
            "quantizes the result."
        ),
        fix=REPAIR_FIX,
        evidence=f"{ENGINES}: qat-residual, 1823 queries/s, against qat-residual-qgap, 1990",
        see=EXPLICIT,
    ),
    Problem(
        code="unequal-scales",
        severity=WARNING,
        title="Tensors that are joined or moved together with different scales",
        cost=(
            "A kernel converts one scale into the other. Before a Concat without a pair on its "
            "result, the next layer runs in float."
        ),
        fix=f"give them one scale: calibrate again with qdq, or {REPAIR_FIX}",
        evidence=f"{RTX}: a Conv after a Concat of two scales runs in float, of one scale in INT8",
        see="NVIDIA/TensorRT issue 4366",
    ),
    Problem(
        code="pair-in-fusion",
        severity=WARNING,
        title="A pair between a weighted layer and an operator that TensorRT fuses with it",
        cost=(
            "The pair rounds once more, and may split the fusion with batch normalisation, "
            "activation or Add."
        ),
        fix=f"remove the pair, or {REPAIR_FIX}",
        evidence=f"placement recommendations 2 and 3; {RTX} the layer stays in INT8",
        see=EXPLICIT,
    ),
    Problem(
        code="pair-on-output",
        severity=WARNING,
        title="A pair on the output of a weighted layer",
        cost=(
            "The pair rounds before the next operators, which may need the precision, and keeps "
            "them from being fused."
        ),
        fix=f"remove the pair, or {REPAIR_FIX}",
        evidence=f"placement recommendation 2; {RTX} the layer stays in INT8",
        see=EXPLICIT,
    ),
    Problem(
        code="no-kernel",
        severity=WARNING,
        title="A quantized layer that has no INT8 kernel on the target",
        cost=(
            "The engine computes the pair and runs the layer in float, which costs time and "
            "accuracy for nothing."
        ),
        fix=f"remove its pairs, or {REPAIR_FIX} for this target",
        evidence="one-layer networks built for each compute capability (docs/kernels.md)",
        see=EXPLICIT,
    ),
    Problem(
        code="missing-pair",
        severity=WARNING,
        title="An edge that the rules quantize and the model does not",
        cost="The operator that reads it runs in float, or needs a conversion.",
        fix=f"{REPAIR_FIX}, or keep it in float with leave_float in the project file",
        evidence=_RULE,
        see=EXPLICIT,
    ),
    Problem(
        code="unwanted-pair",
        severity=WARNING,
        title="A pair that no rule asks for",
        cost="The pair rounds and costs time, and no INT8 layer gains from it.",
        fix=f"remove the pair, or {REPAIR_FIX}",
        evidence="placement recommendation 6: pairs that are not fused cost time",
        see=EXPLICIT,
    ),
    Problem(
        code="element-type",
        severity=WARNING,
        title="Another quantized type than the rules ask for",
        cost="The layer runs in another type than the target was chosen for.",
        fix="check with the rules that the model was quantized with, or quantize it again",
        evidence=_RULE,
    ),
    Problem(
        code="fp32-island",
        severity=WARNING,
        title="Layers in FP32 between layers in FP16 or BF16",
        cost=(
            "The layers compute in FP32. Around pools and Concat the Casts are kernels, and twice "
            "the bytes are read and written."
        ),
        fix=(
            "cast it with qdq cast MODEL -o OUTPUT --to fp16, where --keep-fp32 records what must "
            "stay"
        ),
        evidence=(
            f"{RTX}: a MaxPool in FP32 between two convolutions in FP16 takes 6 kernels and moves "
            "840 kB, in FP16 5 and 539 kB; around activations, Softmax and LayerNormalization the "
            "Casts cost nothing and are not reported"
        ),
        see=PRECISION_PAGE,
    ),
    Problem(
        code="engine-float",
        severity=WARNING,
        title="A layer with all its pairs that the compiler runs in float",
        cost="The pairs cost time and accuracy for nothing.",
        fix="keep the layer in float for this target",
        evidence=BUILT_ENGINE,
    ),
)
