"""Which nodes TensorRT runs as one layer: its documented layer fusions.

Source: TensorRT documentation, layer fusion catalog (convolution with scale, batch norm,
activation, element-wise sum and padding; point-wise fusion; shuffle and shuffle; reduce to
pooling) and Q/DQ placement recommendations. What the text leaves open follows the engines that
NVIDIA published with trt-engine-explorer and NVIDIA/TensorRT issues 2592 (padding), 3205 and 3861
(SiLU and residual Add).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from qdq.engines.prediction.qdq_propagation import QuantizationFlow, SlotRead
from qdq.graph.index import Node
from qdq.graph.layer_shapes import convolution_channels
from qdq.graph.operands import operands
from qdq.graph.operators import (
    CONVOLUTION_EPILOGUES,
    CONVOLUTIONS,
    FOLDED_INTO_WEIGHTS,
    POOLING_LAYERS,
    PRODUCTS,
    RECURRENT,
    SHUFFLES,
)
from qdq.graph.patterns import is_spatial_mean

#: Input channels up to which a convolution reads four-wide vectors, as the first one does.
FEW_CHANNELS = 4

_POINTWISE = {
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or",
    "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu",
    "Where", "Xor",
}  # fmt: skip
_LARGEST_EPILOGUE = 16


class FusionGroup(msgspec.Struct, frozen=True):
    """Nodes that run as one layer, in graph order."""

    #: ``weighted``, ``recurrent``, ``pointwise``, ``pool``, ``shuffle``, ``concat`` or ``other``.
    family: str
    nodes: tuple[Node, ...]
    #: The weighted node, else the first one.
    core: Node
    output: str
    #: What a residual Add inside the group joins to the convolution.
    addend: SlotRead | None = None
    #: A zero padding that the convolution does itself.
    padding: Node | None = None
    #: A max pool that runs in the convolution's kernel.
    pooled: bool = False


def fuse_nodes(flow: QuantizationFlow) -> tuple[FusionGroup, ...]:
    """Return the layers of a graph, in an order in which they can run."""
    owned: set[int] = set()
    groups = []
    for node in reversed(flow.nodes):
        if node.op in PRODUCTS and operands(flow.index, node) and id(node) not in owned:
            group = _weighted(flow, node, owned)
            owned.update(id(n) for n in group.nodes)
            groups.append(group)
    rest = [n for n in flow.nodes if id(n) not in owned]
    groups += _chains(flow, [n for n in rest if n.op in _POINTWISE], "pointwise")
    groups += _chains(flow, [n for n in rest if n.op in SHUFFLES], "shuffle")
    groups += [
        FusionGroup(_family(flow, n), (n,), n, n.outputs[0])
        for n in rest
        if n.op not in _POINTWISE and n.op not in SHUFFLES
    ]
    return tuple(sorted(groups, key=lambda g: g.nodes[-1].position))


def int8_operands(flow: QuantizationFlow, node: Node) -> str:
    """Return the type in which a weighted node multiplies, ``Int8`` or ``FP8``, or "" where an operand is float."""
    found = set()
    for tensor in node.inputs[:2]:
        if tensor in flow.folded:
            found.add(flow.weight_type(tensor))
        else:
            quantization = flow.quantization(flow.read(tensor))
            found.add(quantization.dtype if quantization else "")
    return found.pop() if len(found) == 1 else ""


def is_depthwise(flow: QuantizationFlow, node: Node) -> bool:
    """Whether a convolution has one input channel in each group."""
    sizes = convolution_channels(flow.index, node)
    return sizes is not None and sizes.groups > 1 and sizes.inputs == 1


def has_few_channels(flow: QuantizationFlow, node: Node) -> bool:
    """Whether a convolution reads so few channels that it takes four-wide vectors."""
    sizes = convolution_channels(flow.index, node)
    return sizes is not None and 0 < sizes.inputs * sizes.groups <= FEW_CHANNELS


def _weighted(flow: QuantizationFlow, node: Node, owned: set[int]) -> FusionGroup:
    before = _padding(flow, node)
    behind: list[Node] = []
    tensor = _follow(flow, node.outputs[0], behind, owned, _is_scaling)
    addend = None
    if node.op in CONVOLUTIONS and (add := _residual(flow, tensor, owned)) is not None:
        addend = next(r for _, r in flow.inputs(add) if r.tensor != tensor or r.quantization)
        behind, tensor = [*behind, add], add.outputs[0]
    activated = _follow(flow, tensor, behind, owned, _is_epilogue, at_most=1)
    if activated == tensor and addend is None:
        activated = _generated_epilogue(flow, node, tensor, behind, owned)
    pool = _pool_behind(flow, node, activated, addend)
    behind += [pool] if pool else []
    nodes = tuple(sorted([n for n in (before, node, *behind) if n], key=lambda n: n.position))
    return FusionGroup(
        "weighted",
        nodes,
        node,
        pool.outputs[0] if pool else activated,
        addend,
        before,
        pool is not None,
    )


def _padding(flow: QuantizationFlow, node: Node) -> Node | None:
    """Return the zero padding in front of a convolution, unless a pair stands between them."""
    read, pad = (
        flow.read(node.inputs[0]),
        flow.index.producers.get(flow.read(node.inputs[0]).tensor),
    )
    if node.op != "Conv" or read.quantization or pad is None or pad.op != "Pad":
        return None
    return pad if flow.commutes(pad) and flow.sole_reader(read.tensor) is node else None


def _follow(
    flow: QuantizationFlow,
    tensor: str,
    behind: list[Node],
    owned: set[int],
    takes: Callable[[QuantizationFlow, Node], bool],
    at_most: int = 8,
) -> str:
    """Append the nodes behind a tensor that `takes` accepts, one reading the next, and return the last output."""
    for _ in range(at_most):
        reader = flow.sole_reader(tensor)
        if reader is None or id(reader) in owned or not takes(flow, reader):
            break
        behind.append(reader)
        tensor = reader.outputs[0]
    return tensor


def _is_scaling(flow: QuantizationFlow, node: Node) -> bool:
    return (
        node.op in FOLDED_INTO_WEIGHTS and len(flow.inputs(node)) == 1 and _keeps_shape(flow, node)
    )


def _is_epilogue(flow: QuantizationFlow, node: Node) -> bool:
    return node.op in CONVOLUTION_EPILOGUES and len(flow.inputs(node)) == 1


def _keeps_shape(flow: QuantizationFlow, node: Node) -> bool:
    """Whether a constant operand does not make the result larger."""
    computed = next(read.tensor for _, read in flow.inputs(node))
    given, made = flow.index.shape(computed), flow.index.shape(node.outputs[0])
    return given is None or made is None or given == made


def _residual(flow: QuantizationFlow, tensor: str, owned: set[int]) -> Node | None:
    """Return the Add that joins a convolution's result with another tensor of its shape."""
    add = flow.sole_reader(tensor)
    if add is None or add.op != "Add" or id(add) in owned:
        return None
    reads = [read for _, read in flow.inputs(add)]
    if len(reads) != 2 or reads[0] == reads[1]:  # noqa: PLR2004 two terms
        return None
    return add if flow.index.shape(add.inputs[0]) == flow.index.shape(add.inputs[1]) else None


def _generated_epilogue(
    flow: QuantizationFlow, node: Node, tensor: str, behind: list[Node], owned: set[int]
) -> str:
    """Append the point-wise nodes, such as SiLU, that an INT8 convolution computes before it quantizes its result.

    Depthwise convolutions do not (NVIDIA/TensorRT issue 3205).
    """
    if node.op != "Conv" or not int8_operands(flow, node) or is_depthwise(flow, node):
        return tensor
    cone: list[Node] = []
    made, queue = {tensor}, [tensor]
    while queue and len(cone) <= _LARGEST_EPILOGUE:
        for reader, _ in flow.plain.get(queue.pop(), ()):
            inside = reader.op in _POINTWISE and all(
                r.tensor in made and not r.quantization for _, r in flow.inputs(reader)
            )
            if inside and id(reader) not in owned and reader not in cone:
                cone.append(reader)
                made.add(reader.outputs[0])
                queue.append(reader.outputs[0])
    leaving = [t for t in made if _leaves(flow, t, cone)]
    if not cone or len(leaving) != 1 or leaving[0] == tensor or leaving[0] not in flow.wanted:
        return tensor
    behind += cone
    return leaving[0]


def _leaves(flow: QuantizationFlow, tensor: str, inside: Iterable[Node]) -> bool:
    ids = {id(n) for n in inside}
    return (
        bool(flow.quantized.get(tensor))
        or tensor in flow.outputs
        or any(id(n) not in ids for n, _ in flow.plain.get(tensor, ()))
    )


def _pool_behind(
    flow: QuantizationFlow, node: Node, tensor: str, addend: SlotRead | None
) -> Node | None:
    """Return the max pool that runs in the kernel of a first INT8 convolution; the pool's result is then INT8 too."""
    pool = flow.sole_reader(tensor)
    if (
        pool is None
        or pool.op != "MaxPool"
        or addend
        or node.op != "Conv"
        or int8_operands(flow, node) != "Int8"
    ):
        return None
    return pool if has_few_channels(flow, node) and pool.outputs[0] in flow.wanted else None


def _family(flow: QuantizationFlow, node: Node) -> str:
    if node.op in POOLING_LAYERS or is_spatial_mean(flow.index, node):
        return "pool"
    if node.op in RECURRENT:
        return "recurrent"
    return "concat" if node.op == "Concat" else "other"


def _chains(flow: QuantizationFlow, nodes: list[Node], family: str) -> Iterator[FusionGroup]:
    """Join nodes of one family where each tensor between them is read inside alone."""
    chain_of: dict[int, list[Node]] = {}
    for node in nodes:
        chain = chain_of[id(node)] = [node]
        for producer in _producers(flow, node):
            other = chain_of.get(id(producer))
            if (
                other is None
                or other is chain
                or not _read_only_by(flow, producer.outputs[0], node, other, chain_of)
            ):
                continue
            short, long = sorted((chain, other), key=len)
            long.extend(short)
            chain_of.update({id(member): long for member in short})
            chain = long
    for chain in {id(c): c for c in chain_of.values()}.values():
        chain.sort(key=lambda n: n.position)
        yield FusionGroup(family, tuple(chain), chain[0], chain[-1].outputs[0])


def _read_only_by(
    flow: QuantizationFlow,
    tensor: str,
    node: Node,
    chain: list[Node],
    chain_of: dict[int, list[Node]],
) -> bool:
    """Whether nobody but `node` and the members of a chain reads a tensor."""
    if flow.quantized.get(tensor) or tensor in flow.outputs:
        return False
    return all(n is node or chain_of.get(id(n)) is chain for n, _ in flow.plain.get(tensor, ()))


def _producers(flow: QuantizationFlow, node: Node) -> Iterator[Node]:
    for _, read in flow.inputs(node):
        producer = flow.index.producers.get(read.tensor)
        if producer is not None and not read.quantization:
            yield producer
