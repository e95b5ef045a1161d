"""Groups of nodes that TensorRT runs as one layer, and the weighted node in one."""

from __future__ import annotations

import msgspec

from qdq.engines.prediction.qdq_propagation import QuantizationFlow, SlotRead
from qdq.graph.index import Node
from qdq.graph.layer_shapes import convolution_channels

#: Operators that TensorRT joins into point-wise kernels.
POINTWISE = frozenset(
    (
        "Abs",
        "Add",
        "And",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
    )
)

#: Input channels up to which a convolution reads four-wide vectors, as the first one does.
_FEW_CHANNELS = 4


class FusionGroup(msgspec.Struct, frozen=True):
    """Nodes that run as one layer, in graph order."""

    #: ``weighted``, ``recurrent``, ``pointwise``, ``pool``, ``shuffle``, ``concat`` or ``other``.
    family: str
    nodes: tuple[Node, ...]
    #: The weighted node, else the first one.
    core: Node
    output: str
    #: The other operand of a residual Add in the group.
    addend: SlotRead | None = None
    #: A zero padding that the convolution applies itself.
    padding: Node | None = None
    #: Whether a max pool runs in the convolution's kernel.
    has_pool: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its nodes."""
        return tuple(node.label for node in self.nodes)

    @property
    def name(self) -> str:
        """The name that TensorRT gives its layer."""
        return " + ".join(self.labels)


def multiplied_type(flow: QuantizationFlow, node: Node) -> str:
    """Return the quantized type in which a weighted node multiplies, ``Int8`` or ``FP8``.

    "" where an operand is float or the types differ.
    """
    types = set()
    for tensor in node.inputs[:2]:
        if tensor in flow.folded:
            types.add(flow.weight_type(tensor))
        else:
            quantization = flow.quantization(flow.read(tensor))
            types.add(quantization.dtype if quantization else "")
    return types.pop() if len(types) == 1 else ""


def is_depthwise(flow: QuantizationFlow, node: Node) -> bool:
    """Whether a convolution has one input channel in each group."""
    channels = convolution_channels(flow.index, node)
    return channels is not None and channels.groups > 1 and channels.inputs == 1


def has_few_channels(flow: QuantizationFlow, node: Node) -> bool:
    """Whether a convolution reads so few channels that it takes four-wide vectors."""
    channels = convolution_channels(flow.index, node)
    return channels is not None and 0 < channels.inputs * channels.groups <= _FEW_CHANNELS
