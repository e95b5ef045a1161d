"""Groups of nodes that together are one thing: normalisations, activations and gates in the spellings exporters use.

Each is found from one node that it cannot lack, the root of a normalisation or the erf of a Gelu,
so that what is found does not depend on the order of nodes and takes linear time in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar
from weakref import WeakKeyDictionary

from qdq.graph.bodies import captured_names
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operands import operands
from qdq.graph.operators import GATES, MOVES_VALUES, PICKS_VALUES

PLANE_RANK = 4

#: Operators that normalise, in one node.
NORMALIZATIONS = (
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization", "RMSNormalization", "LpNormalization", "LRN",
    "com.microsoft.LayerNormalization", "com.microsoft.SkipLayerNormalization", "com.microsoft.SimplifiedLayerNormalization",
)  # fmt: skip


_PAD_VALUE = 2
_PLANE = 2
_Found = TypeVar("_Found")


def cached_per_graph(function: Callable[[GraphIndex], _Found]) -> Callable[[GraphIndex], _Found]:
    """Keep what a function found in a graph for as long as the graph is kept."""
    known: WeakKeyDictionary[GraphIndex, _Found] = WeakKeyDictionary()

    def kept(index: GraphIndex) -> _Found:
        if index not in known:
            known[index] = function(index)
        return known[index]

    kept.__doc__ = function.__doc__
    return kept


@cached_per_graph
def multiplied_tensors(index: GraphIndex) -> dict[str, Edge]:
    """Return the tensors of a graph that weighted operators multiply, each with the first edge that does."""
    found: dict[str, Edge] = {}
    for node in index.nodes:
        for edge in operands(index, node):
            found.setdefault(edge.tensor, edge)
    return found


def can_commute_with_quantization(index: GraphIndex, node: Node) -> bool:
    """Whether quantizing before a node gives what quantizing behind it gives, for one scale.

    It does for operators that move, pick or repeat values: TensorRT documents it for MaxPool
    (explicit quantization, Q/DQ propagation), and the others have the same proof. Of Resize it does
    for the nearest mode, of Pad for padding with zeros or with values of the tensor itself.
    """
    if node.op == "Resize":
        return bool(node.attribute("mode", b"nearest") == b"nearest")
    if node.op == "Pad":
        return _pads_with_zeros_or_itself(index, node)
    return node.op in MOVES_VALUES or node.op in PICKS_VALUES


def trace_axis_to_input(index: GraphIndex, node: Node, axis: int | None) -> int | None:
    """Return the axis of the input that becomes an axis of the output where a node only moves values; None where none does."""
    before, after = index.shape(node.inputs[0]), index.shape(node.outputs[0])
    if axis is None or node.op == "Identity":
        return axis
    if node.op == "Transpose":
        default = range(len(before or ()) - 1, -1, -1)
        order = list(node.attribute("perm", default))
        return int(order[axis]) if axis < len(order) else None
    if before is None or after is None or None in (*before, *after):
        return None
    ahead, size = math.prod(d or 0 for d in after[:axis]), after[axis]
    return next(
        (
            i
            for i, d in enumerate(before)
            if d == size and math.prod(x or 0 for x in before[:i]) == ahead
        ),
        None,
    )


def find_producer_before_moves(index: GraphIndex, tensor: str) -> Node | None:
    """Return the node that makes a tensor, operators that only move values left out; None for a graph input or constant."""
    node = index.producers.get(tensor)
    while node is not None and node.op in MOVES_VALUES:
        node = index.producers.get(node.inputs[0])
    return node


@cached_per_graph
def normalization_nodes(index: GraphIndex) -> frozenset[str]:
    """Return the labels of normalisations and of the nodes that others were decomposed into."""
    found = {node.label for node in index.nodes if node.op in NORMALIZATIONS}
    for node in index.nodes:
        if node.op == "Sqrt":
            found.update(_decomposed_normalization(index, node))
    return frozenset(found)


@cached_per_graph
def gelu_nodes(index: GraphIndex) -> frozenset[str]:
    """Return the labels of Gelu nodes and of those that spell Gelu with Erf or with Tanh (Hendrycks and Gimpel, arXiv:1606.08415)."""
    found = {
        node.label
        for node in index.nodes
        if node.op in ("Gelu", "com.microsoft.Gelu", "com.microsoft.FastGelu")
    }
    for node in index.nodes:
        if node.op in ("Erf", "Tanh"):
            found.update(_decomposed_gelu(index, node))
    return frozenset(found)


@cached_per_graph
def tail_nodes(index: GraphIndex) -> frozenset[str]:
    """Return the labels of the nodes behind the last weighted ones: no weighted operator reads what they make.

    A node with bodies counts as weighted. What a body gives may come back to the weighted operators
    in it, so that in a body with one nothing is the last, and in one without everything.
    """
    before = {node.label for node in index.nodes if node.bodies or operands(index, node)}
    if before and index.outer is not None:
        return frozenset()
    waiting = [index.by_label[label] for label in before]
    while waiting:
        node = waiting.pop()
        for tensor in (
            *node.inputs,
            *(name for _, body in node.bodies for name in captured_names(body)),
        ):
            maker = index.producers.get(tensor)
            if maker is not None and maker.label not in before:
                before.add(maker.label)
                waiting.append(maker)
    return frozenset(node.label for node in index.nodes if node.label not in before)


def find_gate(index: GraphIndex, node: Node) -> tuple[str, str] | None:
    """Return the gate and the gated tensor of a Mul by a Sigmoid or HardSigmoid, also one spelled as Clip(x + 3, 0, 6) / 6, else None."""
    if node.op != "Mul" or len(node.inputs) != 2:  # noqa: PLR2004 two factors
        return None
    for gate, other in (node.inputs, node.inputs[::-1]):
        if not index.is_constant(other) and _is_gate(
            index, find_producer_before_moves(index, gate)
        ):
            return gate, other
    return None


def find_self_gated(index: GraphIndex, node: Node) -> str | None:
    """Return the tensor that a node multiplies by the Sigmoid or HardSigmoid of itself, as in SiLU; None for other nodes."""
    pair = find_gate(index, node)
    maker = index.producers.get(pair[0]) if pair else None
    return pair[1] if pair and maker is not None and maker.inputs[0] == pair[1] else None


def is_channel_gate(index: GraphIndex, node: Node) -> bool:
    """Whether a node is the Mul of a squeeze-and-excite block: its gate holds one value for each channel (Hu et al., arXiv:1709.01507)."""
    pair = find_gate(index, node)
    gate, data = (index.shape(t) for t in pair) if pair else (None, None)
    if gate is None or len(gate) <= _PLANE or (data is not None and len(data) != len(gate)):
        return False
    return all(size == 1 for size in gate[_PLANE:]) and (
        data is None or gate[_PLANE:] != data[_PLANE:]
    )


@cached_per_graph
def attention_masks(index: GraphIndex) -> frozenset[str]:
    """Return the labels of the Adds of a mask or a bias to attention scores: those that lead to a Softmax through moves, scaling and other such Adds."""
    found: set[str] = set()
    waiting = [node.inputs[0] for node in index.nodes if node.op in ("Softmax", "LogSoftmax")]
    while waiting:
        maker = index.producers.get(waiting.pop())
        if maker is None or maker.label in found:
            continue
        if maker.op == "Add":
            found.add(maker.label)
        if maker.op in (*MOVES_VALUES, "Add") or (
            maker.op in ("Mul", "Div") and _has_constant(index, maker)
        ):
            waiting.extend(
                tensor for tensor in maker.inputs if len(index.consumers.get(tensor, ())) == 1
            )
    return frozenset(found)


def _pads_with_zeros_or_itself(index: GraphIndex, node: Node) -> bool:
    if (
        node.attribute("mode", b"constant") != b"constant"
        or len(node.inputs) <= _PAD_VALUE
        or not node.inputs[_PAD_VALUE]
    ):
        return True
    return (
        index.is_constant(node.inputs[_PAD_VALUE])
        and not index.constant(node.inputs[_PAD_VALUE]).any()
    )


def _is_gate(index: GraphIndex, maker: Node | None) -> bool:
    if maker is not None and maker.op in ("Div", "Mul") and _has_constant(index, maker):
        maker = _maker(index, maker, ("Clip",))
    if maker is None or maker.op != "Clip":
        return maker is not None and maker.op in GATES
    shifted = index.producers.get(maker.inputs[0])
    return shifted is not None and shifted.op == "Add" and _has_constant(index, shifted)


def _decomposed_normalization(index: GraphIndex, root: Node) -> set[str]:
    """Return the labels of a normalisation around its root: mean, difference, square, mean, Add of epsilon, root, division."""
    chain = [root]
    for wanted in (("Add",), ("ReduceMean",), ("Pow", "Mul")):
        before = _maker(index, chain[-1], wanted)
        if before is None:
            return set()
        chain.append(before)
    difference = _maker(index, chain[-1], ("Sub",))
    if difference is not None:
        mean = _maker(index, difference, ("ReduceMean",))
        chain += [difference, *([mean] if mean else [])]
    divisions = [n for n in _readers(index, root) if n.op in ("Div", "Reciprocal")]
    inverted = [n for n in divisions if n.op == "Reciprocal" or index.is_constant(n.inputs[0])]
    scalings = [product for n in inverted for product in _readers(index, n) if product.op == "Mul"]
    return {node.label for node in (*chain, *divisions, *scalings)} if divisions else set()


def _decomposed_gelu(index: GraphIndex, curve: Node) -> set[str]:
    """Return the labels of x * (1 + curve(...)) / 2 around its Erf or Tanh, halved at any of three places; nothing where it spells something else."""
    inside = list(_argument(index, curve))
    one_more = [n for n in _readers(index, curve) if n.op == "Add" and _has_constant(index, n)]
    if len(one_more) != 1 or not inside:
        return set()
    factors = [n for n in _readers(index, one_more[0]) if n.op == "Mul"]
    behind = [n for f in factors for n in _readers(index, f) if n.op in ("Mul", "Div")]
    before = [
        m
        for f in factors
        for t in f.inputs
        if (m := index.producers.get(t)) and m.op in ("Mul", "Div")
    ]
    halved = [n for n in (*factors, *behind, *before) if _has_constant(index, n)]
    products = [
        n
        for n in (*factors, *behind)
        if n.op == "Mul" and not _has_constant(index, n) and _shares_input(index, n, inside)
    ]
    return (
        {node.label for node in (curve, *inside, *one_more, *factors, *halved, *products)}
        if products and halved
        else set()
    )


def _shares_input(index: GraphIndex, product: Node, inside: list[Node]) -> bool:
    """Whether a product multiplies what the inner argument is made of, perhaps halved."""
    read = {tensor for node in inside for tensor in node.inputs}
    halves = {
        t
        for tensor in product.inputs
        if (m := index.producers.get(tensor)) and m.op in ("Mul", "Div") and _has_constant(index, m)
        for t in m.inputs
    }
    return bool(read & (set(product.inputs) | halves))


def _argument(index: GraphIndex, curve: Node) -> Iterator[Node]:
    """Yield the nodes that compute a Gelu's inner argument: x / sqrt(2), or sqrt(2/pi) * (x + 0.044715 * x^3)."""
    scaled = _maker(index, curve, ("Div", "Mul"))
    if scaled is None or not _has_constant(index, scaled):
        return
    yield scaled
    total = _maker(index, scaled, ("Add",)) if curve.op == "Tanh" else None
    cubed = _maker(index, total, ("Mul",)) if total else None
    for node in (total, cubed, _maker(index, cubed, ("Pow", "Mul")) if cubed else None):
        if node is not None:
            yield node


def _maker(index: GraphIndex, node: Node, wanted: tuple[str, ...]) -> Node | None:
    """Return the first node of some operators that makes one of a node's inputs, a Cast between them left out."""
    for tensor in node.inputs:
        maker = index.producers.get(tensor)
        while maker is not None and maker.op == "Cast":
            maker = index.producers.get(maker.inputs[0])
        if maker is not None and maker.op in wanted:
            return maker
    return None


def _readers(index: GraphIndex, node: Node) -> list[Node]:
    return [reader for reader, _ in index.consumers.get(node.outputs[0], ())]


def _has_constant(index: GraphIndex, node: Node) -> bool:
    return any(index.is_constant(i) for i in node.inputs)


def is_spatial_mean(index: GraphIndex, node: Node) -> bool:
    """Whether a node is a ReduceMean over the plane of [batch, channel, height, width], another spelling of GlobalAveragePool."""
    if node.op != "ReduceMean" or index.rank(node.inputs[0]) != PLANE_RANK:
        return False
    axes = node.attribute("axes")
    if axes is None and len(node.inputs) > 1 and index.is_constant(node.inputs[1]):
        axes = index.constant(node.inputs[1]).ravel().tolist()
    return sorted(a % PLANE_RANK for a in axes or ()) == [2, 3]
