"""ONNX operators by their role in quantization: every list that several stages use.

Where two stages need different lists of one kind, the names say what differs.
"""

from __future__ import annotations

CONVOLUTIONS = ("Conv", "ConvTranspose")
MATRIX_PRODUCTS = ("Gemm", "MatMul")

#: Operators whose first two inputs are multiplied and summed into their result.
PRODUCTS = (*CONVOLUTIONS, *MATRIX_PRODUCTS, "Einsum")

#: Operators whose sequence is multiplied with W at every step.
RECURRENT = ("LSTM", "GRU", "RNN")
WEIGHTED = (*PRODUCTS, *RECURRENT)

#: Operators whose result has another range than their inputs.
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow")

#: Operators that add their inputs.
SUMS = ("Add", "Sum")

#: Arithmetic of two operands, each of which scales the channels of the other.
PAIRWISE = ("Add", "Sub", "Mul", "Div")

#: Operators that only move values: they keep each value and the number of values.
MOVES_VALUES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

#: Operators that pick, repeat or reorder values.
PICKS_VALUES = (
    "Slice",
    "Split",
    "Gather",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
    "MaxPool",
    "GlobalMaxPool",
)

#: Operators whose result holds every value of their first input, often more than once.
REPEATS_VALUES = ("Expand", "Tile", "DepthToSpace", "SpaceToDepth")

#: Moves that TensorRT runs as one shuffle layer.
SHUFFLES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")

#: Moves between a matrix product and its residual Add: from channels last to channels first.
MOVES_BEFORE_RESIDUAL = ("Transpose", "Reshape")

#: Operators that the importer replaces by their input.
ALIASES = ("Identity", "Dropout")

#: Operators that return their input where they have one only.
ALIASES_OF_ONE_INPUT = ("Sum", "Max", "Min", "Mean", "Concat")

#: Operators that return their first input where that has the shape of the result.
ALIASES_OF_ONE_SHAPE = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")

#: Pools that have rows in the kernel tables.
POOLS = ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool")

#: Pools that TensorRT runs as pooling layers.
POOLING_LAYERS = (*POOLS, "LpPool", "GlobalLpPool")

#: Pools that rules may ask a pair for; GlobalMaxPool only picks values.
QUANTIZABLE_POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMean")

#: Activations that keep a tensor's channels: normalizations before them reach the layers after.
ACTIVATIONS = ("Clip", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")

#: Operators that no pair may separate from the weighted layer before them.
FUSED_AFTER_WEIGHTED = (*ACTIVATIONS, "BatchNormalization", "PRelu", "HardSwish")

#: Activations between a convolution and its residual Add; SiLU is one too, written with Mul.
#: Max and Min with a constant are other spellings of Relu and Clip.
ACTIVATIONS_BEFORE_RESIDUAL = ("Relu", "Clip", "Max", "Min", "LeakyRelu", "HardSwish")

#: Activations that convolution kernels apply to their results.
CONVOLUTION_EPILOGUES = ("Relu", "Clip", "LeakyRelu", "Gelu")

#: Operators that, with a constant operand, are folded into the weight or bias of the layer before.
FOLDED_INTO_WEIGHTS = ("BatchNormalization", *SUMS, "Mul", "Sub", "Div")

#: Operators between a weighted layer and a graph output that TensorRT fuses with the layer.
FUSED_BEFORE_OUTPUT = ("BatchNormalization", "Relu", "Clip")

#: Operators that squash a gate.
GATES = ("Sigmoid", "HardSigmoid")

#: Operators that compute class scores.
SCORING = ("Softmax", "LogSoftmax", "Sigmoid", *WEIGHTED)

#: Operators between class scores and a graph output.
PASSES_SCORES = ("Add", "Flatten", "Identity", "Reshape", "Squeeze", "Cast")

#: Operators whose bodies are planned.
PLANNED_BODIES = ("If", "Loop", "Scan")

#: Operators that run their body several times.
REPEATING = ("Loop", "Scan")
